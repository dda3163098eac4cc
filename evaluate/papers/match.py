"""Which of our results stands beside which of the papers' figures, and whether the two may be subtracted.

A difference is computed only where nothing stands against it: neither the column's reason nor anything about our own
row.
"""

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from evaluate import distribution, pipelines, scorers
from evaluate.bench import timing
from evaluate.papers.figures import SECONDS, Column, Figure, read_columns, read_figures
from evaluate.pipelines.recipe import Recipe
from evaluate.results import leaderboard
from evaluate.results.csv_io import read_csv
from evaluate.results.records import Records, file_name
from evaluate.results.summary import summarise
from prompts import suites

LOST = "the paper's figure is lost in the text"


class Ours(NamedTuple):
    """What was measured here: value, standard error or 95 % interval (NaN where there is none), of n images.

    command: what measured it. apart: reasons why this row is no repetition of the paper's, whatever the protocol.
    remark: what one should know.
    """

    value: float
    error: float
    low: float
    high: float
    n: int
    protocol: str
    command: str
    apart: tuple[str, ...] = ()
    remark: str = ""


class Cell(NamedTuple):
    """A figure, ours, and their difference (ours - paper's); or why ours is missing, or why there is no difference."""

    figure: Figure
    column: Column
    ours: Ours | None
    missing: str

    @property
    def difference(self) -> float | None:
        """Ours - the paper's, where the protocols are known to agree."""
        figure, column, ours = self.figure, self.column, self.ours
        if ours is None or not figure.value or column.why or ours.apart or ours.protocol != figure.protocol:
            return None
        return ours.value - float(figure.value)

    @property
    def why(self) -> str:
        """Why ours is missing, or why there is no difference."""
        if self.ours is None:
            return self.missing
        lost = "" if self.figure.value else LOST
        return "" if self.difference is not None else "; ".join(filter(None, (lost, *self.ours.apart, self.column.why)))


@dataclass(frozen=True)
class Leaderboards:
    """The results under a folder of leaderboards."""

    folder: Path
    _rows: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    _recipes: dict[str, Recipe] = field(default_factory=dict)

    def recipe(self, model: str) -> Recipe:
        """The model's recipe, read once."""
        if model not in self._recipes:
            self._recipes[model] = pipelines.read_recipe(model)
        return self._recipes[model]

    def rows(self, suite: str, model: str) -> list[dict[str, str]]:
        """The model's rows in the suite's leaderboard."""
        if suite not in self._rows:
            self._rows[suite] = leaderboard.read(self.folder / f"{suite}.csv")
        return [row for row in self._rows[suite] if row["model"] == model]

    @cached_property
    def timings(self) -> list[dict[str, str]]:
        """What `evaluate time` wrote."""
        path = self.folder / "timings.csv"
        return read_csv(path) if path.is_file() else []

    def score(self, model: str, column: Column) -> Ours | str:
        """The model's score in a column: of the row that is nearest to the paper's; or why there is none."""
        rows = self.rows(column.suite, model)
        candidates = [
            ours
            for protocol in column.ours
            for row in rows
            if row.get(protocol) and (ours := self._ours(row, protocol, column)) is not None
        ]
        if candidates:  # what is nearest to the paper's, then the column's first protocol, then the most images
            return min(candidates, key=lambda ours: (len(ours.apart), column.ours.index(ours.protocol), -ours.n))
        if not rows:
            about = self.recipe(model).about
            return "not run; gated: accept its terms on the hub first" if about and about.gated else "not run"
        if column.group and any(row.get(protocol) for protocol in column.ours for row in rows):
            return f"run, but no records of {column.group} are under {self.folder / 'runs'}"
        return f"run, but not with {' or '.join(column.ours)}"

    def _ours(self, row: dict[str, str], protocol: str, column: Column) -> Ours | None:
        apart, command = _deviations(row, self.recipe(row["model"]), protocol, column), row["command"]
        if not column.group:
            error, low, high = (float(row.get(f"{protocol} {name}") or math.nan) for name in ("se", "low", "high"))
            value, n = float(row[protocol]), int(row[f"{protocol} n"])
            return None if math.isnan(value) else Ours(value, error, low, high, n, protocol, command, apart)
        by, _, wanted = column.group.partition("=")
        for path in self.folder.glob(f"runs/*/{file_name(column.suite, row['suite_sha256'], command)}"):
            records = Records.load(path)
            if not _is_of(records, row):
                continue
            for line in summarise(records, by=by):
                if (line.metric, line.group) == (protocol, wanted) and line.n:
                    return Ours(line.mean, line.error, math.nan, math.nan, line.n, protocol, command, apart)
        return None

    def seconds(self, model: str) -> Ours | str:
        """The newest timing of the model, one with its own weights before one with random ones, the pipeline as it is
        before what `--compile` or `--channels-last` make of it.
        """
        rows = [row for row in self.timings if row["model"] == model]
        if not rows:
            return "not timed: 'evaluate time'"
        tuned = ("compiled", "channels_last")
        _, row = max(
            enumerate(rows),
            key=lambda pair: (pair[1]["weights"] != "random", all(pair[1].get(k) != "True" for k in tuned), pair[0]),
        )
        random = ", random weights" if row["weights"] == "random" else ""
        total, least, most = (float(row[f"{name}_s"]) for name in ("total", "least", "most"))
        return Ours(
            total,
            math.nan,
            least,
            most,
            timing.IMAGES,
            "evaluate time",
            row["command"],
            remark=f"ours: {row['hardware']}, {row['dtype']}{random}; least and most of {row['repeats']} calls",
        )


def _is_of(records: Records, row: Mapping[str, str]) -> bool:
    """Whether a row of a leaderboard was made of the records: a command's runs may differ in recipe and machine."""
    made_by = records.meta["made_by"]  # of images that somebody else drew, of what less is known
    digest = made_by.get("model_sha256") or made_by.get("images_sha256")
    return (
        (records.meta["model"], digest) == (row["model"], row["model_sha256"])
        and made_by.get("recipe") == json.loads(row["recipe"])
        and all(made_by.get(name, "") == row[name] for name in ("dtype", "hardware"))
        and row["versions"].startswith(made_by.get("versions", ""))  # a row tells of scorers' too
    )


def _deviations(row: dict[str, str], today: Recipe, protocol: str, column: Column) -> tuple[str, ...]:
    """Why a row of a leaderboard is no repetition of the paper's; empty where it is one.

    today: the model's recipe as it is now.
    """
    recipe, words = json.loads(row["recipe"]), shlex.split(row["command"])
    options = dict(pairwise(words))
    copies = max(int(options.get("--per-prompt", 1)), suite_card(column.suite).per_prompt)
    n, whole = int(row["n"]), suite_card(column.suite).n * copies
    metric = metric_of(protocol)
    own_weights = any(word.startswith((f"{protocol}=", f"{metric}=")) for word in words)
    reasons = {
        "of images that were drawn elsewhere": recipe is None,
        "drawn by another recipe than today's": recipe is not None and recipe != today.record(),
        "of other prompts than the published suite's": column.suite_sha256 not in ("", row["suite_sha256"]),
        only_part(n, whole): n < whole,
        "of an incomplete run": row["complete"] != "True",
        "scored with weights that --weights gave, not the hub's": own_weights,
    }
    return tuple(reason for reason, holds in reasons.items() if holds)


def metric_of(protocol: str) -> str:
    """The metric that is run to have the protocol: itself, or the one whose column it is (`geneval2/gm`, of
    `geneval2`); empty where there is none.
    """
    known = {*scorers.variants(), *distribution.variants()}
    return next((name for name in (protocol, protocol.rpartition("/")[0]) if name in known), "")


def runnable(column: Column) -> str:
    """The metric to run for the column: of its nearest protocol that is here; empty where none is."""
    return next(filter(None, map(metric_of, column.ours)), "")


def lacking(column: Column) -> str:
    """Why nothing of ours can stand in the column, whatever is run: its suite or its metrics are not here. Empty where
    they are, and where it is no score.
    """
    if not column.suite or not column.ours:
        return ""
    if column.suite not in suites.names():
        return f"there is no suite {column.suite!r} here"
    return "" if runnable(column) else f"there is no metric {' or '.join(map(repr, column.ours))} here"


@cache
def suite_card(suite: str) -> suites.Card:
    """What is known of the suite, read once for all the cells of a table."""
    return suites.card(suite)


def only_part(n: int, whole: int) -> str:
    """The reason that stands by a result of some of a suite's images."""
    return f"of {n:,} images of {whole:,} only"


def cells(name: str, folder: Path) -> list[Cell]:
    """Every cell of the table with ours out of the leaderboards in `folder`."""
    known, results = {(column.part, column.metric): column for column in read_columns(name)}, Leaderboards(folder)
    return [_cell(figure, known[figure.part, figure.metric], results) for figure in read_figures(name)]


def _cell(figure: Figure, column: Column, results: Leaderboards) -> Cell:
    if not figure.model:
        return Cell(figure, column, None, "no recipe here is known to be this model")
    recipe = results.recipe(figure.model)
    if not column.ours:
        return Cell(figure, column, None, column.why)
    if column.is_setting:
        settings = {"steps": recipe.steps, "parameters": recipe.about.parameters if recipe.about else None}
        setting = settings[column.ours[0]]
        if not setting:
            return Cell(figure, column, None, "the recipe does not say")
        return Cell(figure, column, Ours(float(setting), math.nan, math.nan, math.nan, 0, "recipe", ""), "")
    if recipe.reported_only:
        return Cell(figure, column, None, f"reported only: {recipe.reported_only}")
    if why := lacking(column):
        return Cell(figure, column, None, why)
    result = results.seconds(figure.model) if column.ours == (SECONDS,) else results.score(figure.model, column)
    return Cell(figure, column, None, result) if isinstance(result, str) else Cell(figure, column, result, "")

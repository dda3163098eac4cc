"""Any number of runs of one suite in one table: every metric's mean, and the share of prompts on which a run is ahead
of those before it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from evaluate.results import sets
from evaluate.results.compare import compare, mismatch
from evaluate.results.csv_io import write_csv
from evaluate.results.records import Records
from evaluate.results.summary import summarise
from evaluate.stats import percent
from prompts.io import markdown
from prompts.io.errors import UserError
from prompts.io.files import replace, write_as


class SharedMetric(NamedTuple):
    """What one run says of one metric.

    over: the model that `value` is a share of wins over, "" where it is the metric's own mean. error: standard error,
    clustered by prompt; low, high: 95 % interval, of a share (Wilson 1927) or of a metric of the whole set. NaN for
    what there is none of.
    """

    metric: str
    over: str
    model: str
    value: float
    error: float
    low: float
    high: float


def side_by_side(runs: Sequence[Records]) -> list[SharedMetric]:
    """Every metric that all runs have, of the prompts that all have.

    Raises UserError where two runs cannot be compared, or have one name.
    """
    check_comparable(runs)
    runs = on_shared_prompts(runs)
    models = [run.meta["model"] for run in runs]
    means = {run.meta["model"]: {row.metric: row for row in summarise(run)} for run in runs}
    unequal = of_unequal_numbers(runs)
    shared = [metric for metric in means[models[0]] if all(metric in rows for rows in means.values())]
    shared = [metric for metric in shared if metric not in unequal]
    if not shared:
        raise UserError("the runs share no metric; run them with the same --metric")
    wins = {
        (row.metric, other.meta["model"], run.meta["model"]): row
        for i, run in enumerate(runs)
        for other in runs[:i]
        for row in compare(other, run)
    }
    figures = []
    for metric in shared:
        for model in models:
            row = means[model][metric]
            figures.append(SharedMetric(metric, "", model, row.mean, row.error, row.low, row.high))
        for over in models[:-1]:
            for model in models:
                if (won := wins.get((metric, over, model))) and not math.isnan(won.win_rate):
                    figures.append(SharedMetric(metric, over, model, won.win_rate, math.nan, won.win_low, won.win_high))
    return figures


def of_unequal_numbers(runs: Sequence[Records]) -> list[str]:
    """The metrics of whole sets that two runs share, of numbers of images that differ."""
    first, *others = runs
    return [
        name
        for name in first.meta.get("distribution", {})
        if any(name in sets.shared_metrics(first, run) and not sets.as_many(first, run, name) for run in others)
    ]


def on_shared_prompts(runs: Sequence[Records]) -> list[Records]:
    """The runs' records of the prompts that all of them have, with a score under every protocol that they share and
    have any score of. Where some have more prompts, metrics of whole sets are left out: they are of all images.
    UserError where none is shared.
    """
    scores = [run.by_prompt().dropna(axis="columns", how="all") for run in runs]
    if failed := [
        run.meta["model"] for run, table in zip(runs, scores, strict=True) if run.meta["protocols"] and table.empty
    ]:
        raise UserError(f"{failed[0]} has no score of any prompt; 'evaluate summary' says why")
    protocols = [name for name in scores[0] if all(name in table for table in scores)]
    shared = set.intersection(*(set(table[protocols].dropna().index) for table in scores))
    if all(shared == set(run.frame["id"]) for run in runs):
        return list(runs)
    if not shared:
        raise UserError("the runs share no prompt that all have a score of; run them on the same prompts")
    whole = all(set(run.frame["id"]) == set(runs[0].frame["id"]) for run in runs)
    return [
        Records(run.frame[run.frame["id"].isin(shared)], run.meta if whole else {**run.meta, "distribution": {}})
        for run in runs
    ]


def check_comparable(runs: Sequence[Records]) -> None:
    """Raise UserError where two runs cannot be compared, or have one name."""
    models = [run.meta["model"] for run in runs]
    if len(set(models)) < len(models):
        raise UserError(f"two runs are both called {next(m for m in models if models.count(m) > 1)}; leave one out")
    for i, run in enumerate(runs):
        for other in runs[:i]:
            if reason := mismatch(other, run):
                raise UserError(f"{other.meta['model']} and {run.meta['model']}: {reason}, so they cannot be compared")


def _text(figure: SharedMetric) -> str:
    if figure.over:
        return percent(figure.value, figure.low, figure.high)
    if not math.isnan(figure.low):
        return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"
    return f"{figure.value:.3f}" + ("" if math.isnan(figure.error) else f" ({figure.error:.3f})")


def lines(figures: Sequence[SharedMetric]) -> tuple[list[str], list[list[str]]]:
    """A head, and a line for each metric and for each share of wins, as texts."""
    models = list(dict.fromkeys(figure.model for figure in figures))
    table: dict[tuple[str, str], dict[str, str]] = {}
    for figure in figures:
        table.setdefault((figure.metric, figure.over), {})[figure.model] = _text(figure)
    return ["", *models], [
        [f"{metric}, ahead of {over}" if over else metric, *(cells.get(model, "") for model in models)]
        for (metric, over), cells in table.items()
    ]


def show(runs: Sequence[Records], figures: Sequence[SharedMetric]) -> None:
    """Print the table."""
    from rich.table import Table

    from evaluate.console import printer

    (head, rows), parts = lines(figures), on_shared_prompts(runs)
    table = Table(
        title=f"{runs[0].meta['suite']}, {parts[0].frame['id'].nunique():,} prompts",
        caption="mean (standard error), or [95 % interval]; ahead of: share of prompts with the higher score",
    )
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console = printer()
    console.print(table)
    for metric in of_unequal_numbers(parts):
        console.print(f"{metric} is left out: it is of unequal numbers of images")
    for run, part in zip(runs, parts, strict=True):
        if run.missing:
            console.print(f"{run.meta['model']} is incomplete: {run.missing}")
        if left_out := run.frame["id"].nunique() - part.frame["id"].nunique():
            also = "; metrics of whole sets too" if run.meta.get("distribution") and part.meta is not run.meta else ""
            console.print(
                f"{run.meta['model']}: {left_out:,} prompts are left out that others lack or have no score of{also}"
            )


def write(path: Path, runs: Sequence[Records], figures: Sequence[SharedMetric]) -> None:
    """Write the figures as .csv, a line each, or the table as .md."""
    suite = {"suite": runs[0].meta["suite"]}

    def write_table(path: Path) -> None:
        head, rows = lines(figures)
        named = [[markdown.plain(row[0]), *row[1:]] for row in rows]
        text = "\n".join(markdown.table([markdown.plain(name) for name in head], named, numbers=True)) + "\n"
        replace(path, lambda draft: draft.write_text(text, encoding="utf-8"))

    write_as(
        path,
        {".csv": lambda path: write_csv([suite | figure._asdict() for figure in figures], path), ".md": write_table},
    )

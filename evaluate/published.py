"""The papers' tables beside what was measured here.

`leaderboards/paper` holds every figure that the papers' text still shows, a line a cell (`Figure`), and what is known of each column
(`Column`): the suite and the metrics of ours that come nearest, and why the two are not known to agree, where they are not. A
difference is computed only where nothing stands against it: neither the column's reason nor anything about our own row.
"""

import html
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table

from evaluate import pipelines
from evaluate.bench import timing
from evaluate.console import console, printer
from evaluate.results import leaderboard
from evaluate.results.csv_io import read_csv, write_csv
from evaluate.results.records import Records
from evaluate.results.summary import summarise
from evaluate.runs.generate import digest
from prompts import suites
from prompts.io.errors import UserError
from prompts.io.files import replace

_SHIPPED, _CHECKOUT = Path(__file__).parent / "paper", Path(__file__).parents[1] / "leaderboards" / "paper"
HERE = _SHIPPED if _SHIPPED.is_dir() else _CHECKOUT

PAPERS = {"di-star": "DI*", "di-plus-plus": "DI++"}
TABLES = {
    "di-star/1": "leading models of 1024 px on Parti and COCO",
    "di-star/2": "ablation of divergence, guidance and reward scale on Parti",
    "di-star/3": "HPSv2.1 by style",
    "di-plus-plus/1": "HPSv2.0 by style; nearly all of its figures are lost in the text",
    "di-plus-plus/2": "four scores of models of 512 px and more on COCO",
}
LOST = "the paper's figure is lost in the text"
#: What `Column.ours` names besides metrics and the two settings `steps` and `parameters`: seconds for ten pictures.
SECONDS = "seconds"


class Figure(NamedTuple):
    """One cell of a paper's table.

    line: the row's number in its part, from 1. row, metric, value: as printed. model: our recipe's name, empty where there is none.
    protocol: our metric, where it is known to be the paper's. note: what is damaged in the text, and where the papers contradict it.
    """

    table: str
    part: str
    line: int
    row: str
    metric: str
    value: str
    model: str
    protocol: str
    note: str


class Column(NamedTuple):
    """What is known of a column: our suite (suite_sha256: its hash, where its prompts are the paper's), group of its prompts, and metrics.

    why: what keeps ours and the paper's from being subtracted; empty where nothing does.
    """

    table: str
    part: str
    metric: str
    suite: str
    suite_sha256: str
    group: str
    ours: tuple[str, ...]
    why: str

    @property
    def is_setting(self) -> bool:
        """Whether it says what a model is, not what was measured."""
        return not self.suite and self.ours != (SECONDS,)


class Ours(NamedTuple):
    """What was measured here: value, standard error or 95 % interval (NaN where there is none), n pictures, protocol, and its command.

    apart: reasons why this row is no repetition of the paper's, whatever the protocol. remark: what one should know.
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


# ---- the papers' side ----------------------------------------------------------------------------------------------------


def label(name: str) -> str:
    """`di-star/1` -> `DI* Table 1`, as `about.rows` of a recipe has it."""
    paper, _, number = name.partition("/")
    return f"{PAPERS[paper]} Table {number}"


def figures(name: str) -> list[Figure]:
    """Every cell of the table. Raises UserError for an unknown name."""
    if name not in TABLES:
        raise UserError(
            f"no table {name!r}; did you mean {get_close_matches(name, TABLES, 1, 0)[0]!r}? There are {', '.join(TABLES)}"
        )
    lines = read_csv(HERE / f"{name.replace('/', '-')}.csv")
    return [Figure(**line | {"line": int(line["line"])}) for line in lines]  # type: ignore[arg-type]


def columns(name: str) -> list[Column]:
    """What is known of the table's columns, in their order."""
    lines = (line for line in read_csv(HERE / "columns.csv") if line["table"] == name)
    return [Column(**line | {"ours": tuple(line["ours"].split())}) for line in lines]  # type: ignore[arg-type]


# ---- our side ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Board:
    """The results under a folder of leaderboards."""

    folder: Path
    _rows: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    _recipes: dict[str, pipelines.Recipe] = field(default_factory=dict)

    def recipe(self, model: str) -> pipelines.Recipe:
        """The model's recipe, read once."""
        if model not in self._recipes:
            self._recipes[model] = pipelines.recipe(model)
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
        found = [
            ours
            for protocol in column.ours
            for row in rows
            if row.get(protocol) and (ours := self._ours(row, protocol, column)) is not None
        ]
        if found:  # what is nearest to the paper's, then the column's first protocol, then the most pictures
            return min(found, key=lambda ours: (len(ours.apart), column.ours.index(ours.protocol), -ours.n))
        if not rows:
            about = self.recipe(model).about
            return "not run; gated: accept its terms on the hub first" if about and about.gated else "not run"
        if column.group and any(row.get(protocol) for protocol in column.ours for row in rows):
            return f"run, but its records are not under {self.folder / 'runs'}"
        return f"run, but not with {' or '.join(column.ours)}"

    def _ours(self, row: dict[str, str], protocol: str, column: Column) -> Ours | None:
        apart, command = _apart(row, self.recipe(row["model"]), protocol, column), row["command"]
        if not column.group:
            error, low, high = (float(row.get(f"{protocol} {name}") or math.nan) for name in ("se", "low", "high"))
            value, n = float(row[protocol]), int(row[f"{protocol} n"])
            return None if math.isnan(value) else Ours(value, error, low, high, n, protocol, command, apart)
        by, _, wanted = column.group.partition("=")
        for path in self.folder.glob(f"runs/*/records-{column.suite}-{digest(command)[:8]}.parquet"):
            records = Records.load(path)
            if records.meta["model"] != row["model"] or records.meta["made_by"].get("model_sha256") != row["model_sha256"]:
                continue
            for line in summarise(records, by=by):
                if (line.metric, line.group) == (protocol, wanted) and line.n:
                    return Ours(line.mean, line.error, math.nan, math.nan, line.n, protocol, command, apart)
        return None

    def seconds(self, model: str) -> Ours | str:
        """The newest timing of the model, one with its own weights before one with random ones."""
        rows = [row for row in self.timings if row["model"] == model]
        if not rows:
            return "not timed: 'evaluate time'"
        row = max(enumerate(rows), key=lambda pair: (pair[1]["weights"] != "random", pair[0]))[1]
        random = ", random weights" if row["weights"] == "random" else ""
        total, least, most = (float(row[f"{name}_s"]) for name in ("total", "least", "most"))
        return Ours(
            total, math.nan, least, most, timing.PICTURES, "evaluate time", row["command"],
            remark=f"ours: {row['hardware']}, {row['dtype']}{random}; least and most of {row['repeats']} calls",
        )  # fmt: skip


def _apart(row: dict[str, str], how: pipelines.Recipe, protocol: str, column: Column) -> tuple[str, ...]:
    """Why a row of a leaderboard is no repetition of the paper's; empty where it is one."""
    recipe, words = json.loads(row["recipe"]), shlex.split(row["command"])
    options = dict(pairwise(words))
    n, whole = int(row["n"]), _count(column.suite) * int(options.get("--per-prompt", 1))
    reasons = {
        "of pictures that were drawn elsewhere": recipe is None,
        "drawn by another recipe than today's": recipe is not None and recipe != how.record(),
        "of other prompts than the published suite's": column.suite_sha256 not in ("", row["suite_sha256"]),
        _few(n, whole): n < whole,
        "of an incomplete run": row["complete"] != "True",
        "scored with weights that --weights gave, not the hub's": any(word.startswith(f"{protocol}=") for word in words),
    }
    return tuple(reason for reason, holds in reasons.items() if holds)


@cache
def _count(suite: str) -> int:
    return suites.card(suite).n


def _few(n: int, whole: int) -> str:
    return f"of {n:,} pictures of {whole:,} only"


def cells(name: str, folder: Path) -> list[Cell]:
    """Every cell of the table with ours out of the leaderboards in `folder`."""
    known, board = {(column.part, column.metric): column for column in columns(name)}, Board(folder)
    return [_cell(figure, known[figure.part, figure.metric], board) for figure in figures(name)]


def _cell(figure: Figure, column: Column, board: Board) -> Cell:
    if not figure.model:
        return Cell(figure, column, None, "no recipe: the paper does not say which of its models this is")
    how = board.recipe(figure.model)
    if not column.ours:
        return Cell(figure, column, None, column.why)
    if column.is_setting:
        told = {"steps": how.steps, "parameters": how.about.parameters if how.about else None}[column.ours[0]]
        nothing = Ours(float(told or math.nan), math.nan, math.nan, math.nan, 0, "recipe", "")
        return Cell(figure, column, nothing, "") if told else Cell(figure, column, None, "the recipe does not say")
    if how.reported_only:
        return Cell(figure, column, None, f"reported only: {how.reported_only}")
    found = board.seconds(figure.model) if column.ours == (SECONDS,) else board.score(figure.model, column)
    return Cell(figure, column, None, found) if isinstance(found, str) else Cell(figure, column, found, "")


# ---- what is shown -------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A cell as it is shown: up to three lines, and the numbers of its notes."""

    lines: tuple[str, ...]
    notes: tuple[int, ...]


class Grid(NamedTuple):
    """A part of a table as it is shown: heads and rows of entries, the first of each the row's name."""

    title: str
    heads: list[Entry]
    rows: list[list[Entry]]


@dataclass
class Notes:
    """Notes under a table, numbered as they come, each told once."""

    texts: list[str] = field(default_factory=list)

    def __call__(self, *texts: str) -> tuple[int, ...]:
        """The numbers of these notes; empty ones are left out."""
        given = [text for text in dict.fromkeys(texts) if text]
        self.texts += [text for text in given if text not in self.texts]
        return tuple(self.texts.index(text) + 1 for text in given)


KEY = "In a cell: the paper's figure; ours ± its standard error, or [95 % interval]; ours - the paper's, where the protocols are known to agree."


def grids(name: str, table: Sequence[Cell]) -> tuple[list[Grid], list[str]]:
    """The table's parts, and the notes under them."""
    notes, result = Notes(), []
    for part in dict.fromkeys(cell.figure.part for cell in table):
        here = [cell for cell in table if cell.figure.part == part]
        heads = list({cell.column.metric: cell.column for cell in here}.values())
        settings, measured = ([column for column in heads if column.is_setting is kind] for kind in (True, False))
        suite = next(column.suite for column in measured if column.suite)
        lines: dict[int, list[Cell]] = {}
        for cell in here:
            lines.setdefault(cell.figure.line, []).append(cell)
        first = [
            Entry((name,), ())
            for name in ("row, our model", *([", ".join(each.metric for each in settings)] if settings else []))
        ]
        shown = [Entry((each.metric, *_protocols(here, each)), notes(*each.why.split("; "))) for each in measured]
        rows = [_row(row, settings, measured, notes) for row in lines.values()]
        result.append(Grid(f"{label(name)}, {suite}", first + shown, rows))
    return result, notes.texts


def _protocols(here: Sequence[Cell], column: Column) -> Iterator[str]:
    """What ours were measured with, where any were."""
    yield from dict.fromkeys(cell.ours.protocol for cell in here if cell.column == column and cell.ours)


def _row(row: Sequence[Cell], settings: Sequence[Column], measured: Sequence[Column], notes: Notes) -> list[Entry]:
    figure, by_column = (
        row[0].figure,
        {column: [cell for cell in row if cell.column == column] for column in (*settings, *measured)},
    )
    scores = [cell for column in measured for cell in by_column[column]]
    # Where a row has nothing of ours, the reasons stand by its name.
    common = [] if any(cell.ours for cell in scores) else [cell.missing for cell in scores]
    about = pipelines.recipe(figure.model).about if figure.model else None
    told = [about.note or ""] if about and not common else []
    entries = [Entry((figure.row, figure.model), notes(*common, *told))]
    if settings:
        there = [cell for column in settings for cell in by_column[column]]
        differ = [_setting(cell) for cell in there if cell.ours and _setting(cell) != cell.figure.value]
        values = ", ".join(cell.figure.value for cell in there), ", ".join(f"{value} here" for value in differ)
        entries.append(Entry(values, notes(*(cell.figure.note for cell in there))))
    return entries + [_entry(cell, common, notes) for column in measured for cell in by_column[column]]


def _entry(cell: Cell, common: Sequence[str], notes: Notes) -> Entry:
    lines, remarks, ours = [cell.figure.value or "lost"], [cell.figure.note], cell.ours
    if ours:
        lines.append(_spread(ours))
        remarks += [*ours.apart, ours.remark]
        if cell.difference is not None:
            lines.append(f"{cell.difference:+.{len(cell.figure.value.partition('.')[2])}f}")
    elif cell.missing not in common:
        remarks.append(cell.missing)
    return Entry(tuple(lines), notes(*remarks))


def _setting(cell: Cell) -> str:
    """What our recipe has, as the papers print it."""
    assert cell.ours
    return f"{cell.ours.value / 1e9:g}B" if cell.column.ours == ("parameters",) else f"{cell.ours.value:g}"


def _spread(ours: Ours) -> str:
    """Ours, with the digits that its spread allows."""
    width = ours.error if ours.error == ours.error else ours.high - ours.low
    digits = 4 if not width > 0 else min(6, max(0, 1 - math.floor(math.log10(width))))
    if ours.low == ours.low:
        return f"{ours.value:.{digits}f} [{ours.low:.{digits}f}, {ours.high:.{digits}f}]"
    return f"{ours.value:.{digits}f}" + (f" ± {ours.error:.{digits}f}" if ours.error == ours.error else "")


def show(name: str, table: Sequence[Cell]) -> None:
    """Print the table and its notes."""
    parts, notes = grids(name, table)
    out = printer()
    for title, heads, rows in parts:
        # Seven columns in 120, with names whole: what is measured is 13 wide, `0.925 ± 0.021`.
        shown = Table(title=escape(title), box=box.HORIZONTALS, show_lines=True, padding=(0, 1, 0, 0), pad_edge=False)
        for i, head in enumerate(heads):
            width = 13 if i > 1 else None
            shown.add_column(escape(_text(head)), overflow="fold", justify="right" if i else "left", max_width=width)
        for row in rows:
            shown.add_row(*(escape(_text(entry)) for entry in row))
        out.print(shown)
    out.print(escape(KEY))
    for number, text in enumerate(notes, 1):
        out.print(escape(f"({number}) {text}"), highlight=False)


def _text(entry: Entry) -> str:
    lines = [line for line in entry.lines if line]
    marks = "".join(f"({number})" for number in entry.notes)
    return "\n".join([*lines[:-1], " ".join(filter(None, (lines[-1] if lines else "", marks)))])


def listing() -> None:
    """Print which tables there are."""
    shown = Table("table", "of", "what it is", "rows", "figures")
    for name, what in TABLES.items():
        cells = figures(name)
        rows = {(figure.part, figure.line) for figure in cells}
        shown.add_row(name, label(name), what, str(len(rows)), str(sum(bool(figure.value) for figure in cells)))
    printer().print(shown)


# ---- files ---------------------------------------------------------------------------------------------------------------


def write(path: Path, name: str, table: Sequence[Cell]) -> None:
    """Write the table as `path`'s ending says: .csv, a line a cell, or .md or .html, as it is shown."""
    writer(path)(path, name, table)


def writer(path: Path) -> Callable[[Path, str, Sequence[Cell]], None]:
    """What writes a file with this ending. Raises UserError where nothing does."""
    known = {".csv": _write_csv, ".md": _write_markdown, ".html": _write_html}
    if path.suffix not in known:
        raise UserError(f"--output {path}: unknown ending {path.suffix!r}; name a file that ends in {', '.join(known)}")
    return known[path.suffix]


def _write_csv(path: Path, name: str, table: Sequence[Cell]) -> None:
    rows = []
    for cell in table:
        figure, ours = cell.figure, cell.ours
        numbers = [None if ours is None or each != each else each for each in (ours[:4] if ours else [math.nan] * 4)]
        rows.append(
            {
                "table": figure.table, "part": figure.part, "line": figure.line, "row": figure.row, "model": figure.model,
                "metric": figure.metric, "paper": figure.value, "paper_protocol": figure.protocol,
                **dict(zip(("ours", "standard_error", "low", "high"), numbers, strict=True)),
                "n": ours.n or None if ours else None, "suite": cell.column.suite, "protocol": ours.protocol if ours else "",
                "difference": cell.difference, "why": cell.why, "note": "; ".join(filter(None, (figure.note, ours.remark if ours else ""))),
                "command": ours.command if ours else "",
            }
        )  # fmt: skip
    write_csv(rows, path)


def _write_markdown(path: Path, name: str, table: Sequence[Cell]) -> None:
    parts, notes = grids(name, table)
    lines = []
    for title, heads, rows in parts:
        lines += [f"## {_md(title)}", ""]
        lines += [_md_line(heads), "|" + "---|" * len(heads), *map(_md_line, rows), ""]
    lines += [_md(KEY), "", *(f"{number}. {_md(text)}" for number, text in enumerate(notes, 1))]
    _save(path, "\n".join(lines) + "\n")


def _md_line(entries: Sequence[Entry]) -> str:
    shown = []
    for entry in entries:
        marks = "".join(f"<sup>({number})</sup>" for number in entry.notes)
        shown.append("<br>".join(_md(line) for line in entry.lines if line) + marks)
    return f"| {' | '.join(shown)} |"


def _md(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no line of its own."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]#|~!:])", r"\\\1", escaped)


STYLE = """
:root { color-scheme: light dark; --line: #ccc; --quiet: #555; --head: #f2f2f2; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --quiet: #aaa; --head: #222; } }
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; }
table { border-collapse: collapse; margin: 1rem 0 2rem; }
.wide { overflow-x: auto; }
caption { text-align: left; font-weight: 600; padding: .5rem 0; }
th, td { border: 1px solid var(--line); padding: .35rem .6rem; text-align: right; vertical-align: top; white-space: nowrap; }
tbody th { text-align: left; font-weight: 500; white-space: normal; min-width: 9rem; }
thead th { background: var(--head); white-space: normal; }
thead th:first-child { text-align: left; }
.more { display: block; color: var(--quiet); font-weight: 400; }
"""


def _write_html(path: Path, name: str, table: Sequence[Cell]) -> None:
    parts, notes = grids(name, table)
    title = f"{label(name)}: {TABLES[name]}"
    body = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(KEY)}</p>"]
    for caption, heads, rows in parts:
        head = "".join(_html(entry, 'th scope="col"') for entry in heads)
        lines = ("".join(_html(entry, "td" if i else 'th scope="row"') for i, entry in enumerate(row)) for row in rows)
        body.append(
            f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table>'
            f"<caption>{html.escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>"
            + "".join(f"<tr>{line}</tr>\n" for line in lines)
            + "</tbody></table></div>"
        )
    body += ["<ol>", *(f'<li id="note-{number}">{html.escape(text)}</li>' for number, text in enumerate(notes, 1)), "</ol>"]
    head = (
        f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>"
    )
    page = '<!doctype html>\n<html lang="en">\n<head>\n' + head + "\n</head>\n<body>\n" + "\n".join(body)
    _save(path, page + "\n</body>\n</html>\n")


def _html(entry: Entry, tag: str) -> str:
    first, *more = [line for line in entry.lines if line] or [""]
    shown = html.escape(first) + "".join(f'<span class="more">{html.escape(line)}</span>' for line in more)
    marks = "".join(f'<sup><a href="#note-{number}">({number})</a></sup>' for number in entry.notes)
    return f"<{tag}>{shown}{marks}</{tag.partition(' ')[0]}>"


def _save(path: Path, text: str) -> None:
    replace(path, lambda draft: draft.write_text(text, encoding="utf-8"))


# ---- filling it ----------------------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """What is to be run for a table: models and metrics by suite; and what is skipped, with the reason."""

    runs: dict[str, tuple[list[str], list[str]]]
    skipped: dict[str, list[str]]


def plan(name: str, folder: Path, *, limit: int | None = None) -> Work:
    """What is missing in `folder`: with `limit`, of the first so many prompts."""
    table, board = cells(name, folder), Board(folder)
    runs: dict[str, tuple[list[str], list[str]]] = {}
    skipped: dict[str, list[str]] = {}

    def skip(what: str, why: str) -> None:
        if what not in skipped.setdefault(why, []):
            skipped[why].append(what)

    for cell in table:
        model, suite = cell.figure.model, cell.column.suite
        if not model or board.recipe(model).reported_only:
            if not cell.column.is_setting:
                skip(model or cell.figure.row, cell.missing)
        elif cell.column.ours == (SECONDS,) and cell.ours is None:
            skip(
                f"seconds of {model}", "they are the hardware's: run 'evaluate time --model NAME' where you want them measured"
            )
        elif suite and cell.column.ours[0].startswith("fid/"):
            if cell.ours is None or cell.ours.apart:
                skip(
                    f"{cell.column.ours[0]} of {model}",
                    "it needs files that may not be passed on: 'evaluate run' with --weights and --reference",
                )
        elif suite and not _there(board.score(model, cell.column), suite, limit):
            models, metrics = runs.setdefault(suite, ([], []))
            models += [] if model in models else [model]
            # All metrics of the suite together: what is scored is kept, and a model has one row.
            wanted = [each.column.ours[0] for each in table if each.column.suite == suite]
            metrics[:] = [metric for metric in dict.fromkeys(wanted) if not metric.startswith("fid/")]
    return Work(runs, skipped)


def _there(ours: Ours | str, suite: str, limit: int | None) -> bool:
    """Whether it is all that a run would make: of the whole suite, or with `limit` of at least so many prompts."""
    if isinstance(ours, str):
        return False
    whole = _count(suite)
    return not ours.apart or (limit is not None and ours.apart == (_few(ours.n, whole),) and ours.n >= limit)


def run_missing(name: str, folder: Path, *, limit: int | None = None, device: str | None = None) -> bool:
    """Run what is missing and can be run, after saying what that is. Returns False where something failed; the rest is run all the same."""
    from evaluate.runs import run

    work, say = plan(name, folder, limit=limit), console.print
    for suite, (models, metrics) in work.runs.items():
        count = min(limit or math.inf, _count(suite))
        say(f"to run: {suite}, {count:,} prompts, {', '.join(metrics)}: {', '.join(models)}", highlight=False)
    for why, what in work.skipped.items():
        say(escape(f"skipped: {', '.join(what)}: {why}"), highlight=False)
    if not work.runs:
        say("nothing to run")
    whole = True
    for suite, (models, metrics) in work.runs.items():
        for model in models:
            try:
                (settings,) = run.settings(
                    suite, [model], metrics, prompts=None, images=None, limit=limit, seed=0, per_prompt=1, batch=16, dtype=None,
                    device=device, output=folder, shard="1/1",
                )  # fmt: skip
                whole &= run.run_and_tell(settings)
            except UserError as error:  # of this model, for example its terms not accepted: the others go on
                say(escape(f"{model} on {suite}: {error}"), highlight=False)
                whole = False
    return whole

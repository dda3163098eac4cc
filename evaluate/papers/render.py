"""A table as it is shown: the papers' figures, ours, the differences, and notes; and how a terminal shows it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rich import box
from rich.table import Table

from evaluate import pipelines
from evaluate.console import printer
from evaluate.papers.figures import TABLES, Column, read_figures, read_sources
from evaluate.papers.match import Cell, Ours, lacking


class Entry(NamedTuple):
    """A cell as it is shown: up to three lines, and the numbers of its notes."""

    lines: tuple[str, ...]
    notes: tuple[int, ...]


class Grid(NamedTuple):
    """A part of a table as it is shown: heads and rows of entries, the first of each the row's name. source: where it
    is from, and what is known of how it was measured.
    """

    title: str
    source: str
    heads: list[Entry]
    rows: list[list[Entry]]


@dataclass
class Notes:
    """Notes under a table, numbered as they come, each shown once."""

    texts: list[str] = field(default_factory=list)

    def __call__(self, *texts: str) -> tuple[int, ...]:
        """The numbers of these notes; empty ones are left out."""
        new = [text for text in dict.fromkeys(texts) if text]
        self.texts += [text for text in new if text not in self.texts]
        return tuple(self.texts.index(text) + 1 for text in new)


KEY = (
    "In a cell: the paper's figure; ours ± its standard error, or [95 % interval]; ours - the paper's, where the "
    "protocols are known to agree."
)


def grids(name: str, table: Sequence[Cell]) -> tuple[list[Grid], list[str]]:
    """The table's parts, and the notes under them."""
    notes, result, sources = Notes(), [], read_sources(name)
    for part in dict.fromkeys(cell.figure.part for cell in table):
        here = [cell for cell in table if cell.figure.part == part]
        heads = list({cell.column.metric: cell.column for cell in here}.values())
        settings, measured = ([column for column in heads if column.is_setting is kind] for kind in (True, False))
        suite = ", ".join(dict.fromkeys(column.suite for column in measured if column.suite))
        lines: dict[int, list[Cell]] = {}
        for cell in here:
            lines.setdefault(cell.figure.line, []).append(cell)
        first = [
            Entry((name,), ())
            for name in ("row, our model", *([", ".join(each.metric for each in settings)] if settings else []))
        ]
        shown = [
            Entry((each.metric, *_protocols(here, each)), notes(lacking(each), *each.why.split("; ")))
            for each in measured
        ]
        rows = [_row(row, settings, measured, notes) for row in lines.values()]
        source = f"Source: {sources[part].source}. Protocol, as far as known: {sources[part].protocol}."
        result.append(Grid(f"{TABLES[name].label}, {part}; ours on {suite}", source, first + shown, rows))
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
    # Where a row has nothing of ours, the reasons stand by its name; what a column lacks stands in its head.
    missing = [cell.missing for cell in scores if cell.missing != lacking(cell.column)]
    common = [] if any(cell.ours for cell in scores) else missing
    about = pipelines.read_recipe(figure.model).about if figure.model else None
    remarks = [about.note or ""] if about and not common else []
    entries = [Entry((figure.row, figure.model), notes(*common, *remarks))]
    if settings:
        setting_cells = [cell for column in settings for cell in by_column[column]]
        differ = [
            printed_setting(cell) for cell in setting_cells if cell.ours and printed_setting(cell) != cell.figure.value
        ]
        values = ", ".join(cell.figure.value for cell in setting_cells), ", ".join(f"{value} here" for value in differ)
        entries.append(Entry(values, notes(*(cell.figure.note for cell in setting_cells))))
    return entries + [_entry(cell, common, notes) for column in measured for cell in by_column[column]]


def _entry(cell: Cell, common: Sequence[str], notes: Notes) -> Entry:
    lines, remarks, ours = [cell.figure.value or "lost"], [cell.figure.note], cell.ours
    if ours:
        lines.append(_spread(ours))
        remarks += [*ours.apart, ours.remark]
        if cell.difference is not None:
            lines.append(f"{cell.difference:+.{len(cell.figure.value.partition('.')[2])}f}")
    elif cell.missing not in (*common, lacking(cell.column)):
        remarks.append(cell.missing)
    return Entry(tuple(lines), notes(*remarks))


def printed_setting(cell: Cell) -> str:
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
    for title, source, heads, rows in parts:
        # Seven columns in 120, with names whole: what is measured is 13 wide, `0.925 ± 0.021`. Of more, it breaks.
        widest = 13 if len(heads) < 8 else 11
        shown = Table(title=title, box=box.HORIZONTALS, show_lines=True, padding=(0, 1, 0, 0), pad_edge=False)
        for i, head in enumerate(heads):
            width = widest if i > 1 else None
            shown.add_column(_text(head), overflow="fold", justify="right" if i else "left", max_width=width)
        for row in rows:
            shown.add_row(*(_text(entry) for entry in row))
        out.print(shown)
        out.print(source, highlight=False)
        out.print()
    out.print(KEY)
    for number, text in enumerate(notes, 1):
        out.print(f"({number}) {text}", highlight=False)


def _text(entry: Entry) -> str:
    lines = [line for line in entry.lines if line]
    marks = "".join(f"({number})" for number in entry.notes)
    return "\n".join([*lines[:-1], " ".join(filter(None, (lines[-1] if lines else "", marks)))])


def listing() -> None:
    """Print which tables there are."""
    shown = Table("table", "of", "what it is", "rows", "figures")
    for name, (label, about) in TABLES.items():
        cells = read_figures(name)
        rows = {(figure.part, figure.line) for figure in cells}
        shown.add_row(name, label, about, str(len(rows)), str(sum(bool(figure.value) for figure in cells)))
    printer().print(shown)

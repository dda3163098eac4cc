"""A table as a file: CSV, Markdown or HTML, in which no name is markup."""

import html
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from evaluate.papers.figures import TABLES
from evaluate.papers.match import Cell
from evaluate.papers.render import KEY, Entry, grids
from evaluate.results.csv_io import write_csv
from prompts.io import markdown
from prompts.io.errors import UserError
from prompts.io.files import replace


def write(path: Path, name: str, table: Sequence[Cell]) -> None:
    """Write the table as `path`'s ending says: .csv, one line per cell, or .md or .html, as it is shown."""
    writer(path)(path, name, table)


def writer(path: Path) -> Callable[[Path, str, Sequence[Cell]], None]:
    """What writes a file with this ending. Raises UserError where nothing does."""
    known = {".csv": _write_csv, ".md": _write_markdown, ".html": _write_html}
    if path.suffix not in known:
        raise UserError(f"--output {path}: unknown ending {path.suffix!r}; name a file that ends in {', '.join(known)}")
    return known[path.suffix]


def _write_csv(path: Path, name: str, table: Sequence[Cell]) -> None:
    write_csv([_line(cell) for cell in table], path)


def _line(cell: Cell) -> dict[str, object]:
    figure, ours = cell.figure, cell.ours
    numbers = [None if math.isnan(each) else each for each in (ours[:4] if ours else [math.nan] * 4)]
    return {
        "table": figure.table,
        "part": figure.part,
        "line": figure.line,
        "row": figure.row,
        "model": figure.model,
        "metric": figure.metric,
        "paper": figure.value,
        "paper_protocol": figure.protocol,
        **dict(zip(("ours", "standard_error", "low", "high"), numbers, strict=True)),
        "n": ours.n or None if ours else None,
        "suite": cell.column.suite,
        "protocol": ours.protocol if ours else "",
        "difference": cell.difference,
        "why": cell.why,
        "note": "; ".join(filter(None, (figure.note, ours.remark if ours else ""))),
        "command": ours.command if ours else "",
    }


def _write_markdown(path: Path, name: str, table: Sequence[Cell]) -> None:
    parts, notes = grids(name, table)
    lines = []
    for title, source, heads, rows in parts:
        lines += [f"## {_md(title)}", "", _md(source), ""]
        lines += [*markdown.table(_md_cells(heads), [_md_cells(row) for row in rows]), ""]
    lines += [_md(KEY), "", *(f"{number}. {_md(text)}" for number, text in enumerate(notes, 1))]
    _save(path, "\n".join(lines) + "\n")


def _md_cells(entries: Sequence[Entry]) -> list[str]:
    shown = []
    for entry in entries:
        marks = "".join(f"<sup>({number})</sup>" for number in entry.notes)
        shown.append("<br>".join(_md(line) for line in entry.lines if line) + marks)
    return shown


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
th, td { border: 1px solid var(--line); padding: .35rem .6rem; text-align: right; vertical-align: top;
  white-space: nowrap; }
tbody th { text-align: left; font-weight: 500; white-space: normal; min-width: 9rem; }
thead th { background: var(--head); white-space: normal; }
thead th:first-child { text-align: left; }
.more { display: block; color: var(--quiet); font-weight: 400; }
"""


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _write_html(path: Path, name: str, table: Sequence[Cell]) -> None:
    parts, notes = grids(name, table)
    title = f"{TABLES[name].label}: {TABLES[name].about}"
    body = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(KEY)}</p>"]
    for caption, source, heads, rows in parts:
        head = "".join(_html(entry, 'th scope="col"') for entry in heads)
        lines = ("".join(_html(entry, "td" if i else 'th scope="row"') for i, entry in enumerate(row)) for row in rows)
        body.append(
            f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table>'
            f"<caption>{html.escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>"
            + "".join(f"<tr>{line}</tr>\n" for line in lines)
            + f"</tbody></table></div><p>{html.escape(source)}</p>"
        )
    items = (f'<li id="note-{number}">{html.escape(text)}</li>' for number, text in enumerate(notes, 1))
    body += ["<ol>", *items, "</ol>"]
    _save(path, PAGE.format(title=html.escape(title), style=STYLE, body="\n".join(body)))


def _html(entry: Entry, tag: str) -> str:
    first, *more = [line for line in entry.lines if line] or [""]
    shown = html.escape(first) + "".join(f'<span class="more">{html.escape(line)}</span>' for line in more)
    marks = "".join(f'<sup><a href="#note-{number}">({number})</a></sup>' for number in entry.notes)
    return f"<{tag}>{shown}{marks}</{tag.partition(' ')[0]}>"


def _save(path: Path, text: str) -> None:
    replace(path, lambda draft: draft.write_text(text, encoding="utf-8"))

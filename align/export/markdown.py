"""Text in Markdown that does nothing, whoever wrote it, and tells nothing of this machine."""

import re
from collections.abc import Sequence
from pathlib import Path

from align.networks.initial import hub_id


def public(source: str) -> str:
    """A model or a file as it is named in public: a name or a hub id as it is, a local path by its last two parts."""
    path = Path(source).expanduser()
    if hub_id(source) and not path.exists():
        return source
    home = Path.home()
    path = path.relative_to(home) if path.is_relative_to(home) else path
    parts = [part for part in path.parts if part not in (path.anchor, ".", "..")]
    return "/".join(part for part in parts[-2:] if part != home.name) or "-"


def code(text: object) -> str:
    """Text as an inline code span of Markdown, whatever it holds."""
    line = " ".join(str(text).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}" if line else "-"


def plain(text: object) -> str:
    """Text as Markdown shows it letter by letter."""
    return re.sub(r"([\\`*_\[\]<>|&~!]|:(?=//))", r"\\\1", " ".join(str(text).split()))


def block(text: str) -> str:
    """Python code as a block that nothing in it can end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}python\n{text}{fence}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, of cells that are Markdown already."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in (heads, *rows))
    return [head, "|" + "---|" * len(heads), *lines]

"""Text and tables of Markdown, in which nothing that is passed in is markup."""

import re
from collections.abc import Sequence


def plain(text: object) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|&~!]|:(?=//))", r"\\\1", " ".join(str(text).split()))


def code(text: object) -> str:
    """Text as an inline code span of Markdown, whatever it holds."""
    line = " ".join(str(text).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}" if line else "-"


def block(text: str) -> str:
    """Python code as a block that nothing in it can end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}python\n{text}{fence}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """A table's lines, of cells that are Markdown. numbers: every column but the first is aligned to the right."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in (heads, *rows))
    rule = "|---|" + ("---:|" if numbers else "---|") * (len(heads) - 1)
    return [head, rule, *lines]

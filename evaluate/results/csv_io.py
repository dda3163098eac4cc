"""CSV files that a spreadsheet opens as they are meant: no prompt and no name turns into a formula.

The rule: a text gets an apostrophe before it where its first character other than a blank is one of `= + - @ '`, or the
same in full width, or where it begins with a tab or the end of a line. What reads as a decimal number stays as it is.
Reading takes one leading apostrophe away, so that what was written comes back.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prompts.io.errors import UserError
from prompts.io.files import replace

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
_FORMULA = re.compile(r"[\t\r\n]|\s*[=+\-@'＝＋－＠]")


def _guard(value: Any) -> str:
    text = "" if value is None else str(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows that have the same keys, at least one row, with a header; None is empty.

    The file is there whole or not at all.
    """

    def write(draft: Path) -> None:
        with draft.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(map(_guard, rows[0]))
            writer.writerows(map(_guard, row.values()) for row in rows)

    assert all(row.keys() == rows[0].keys() for row in rows)
    replace(path, write)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows that `write_csv` wrote, every value as text. Raises UserError for a file that is not such a table."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = ([cell.removeprefix("'") for cell in line] for line in csv.reader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path}: cannot be read as CSV ({error}); move it away, or give a file that 'evaluate' wrote"
        ) from None
    for number, line in enumerate(lines, 2):
        if len(line) != len(header):
            raise UserError(
                f"{path}: row {number} has {len(line)} cells where the header has {len(header)}; fix it, or move the"
                " file away"
            )
    return [dict(zip(header, line, strict=True)) for line in lines]

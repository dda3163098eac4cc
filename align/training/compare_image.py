"""The image of a comparison: start and result side by side, with what a scorer says of both, where
it changes most and at random.
"""

import io
import math
import textwrap
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from torch import Tensor

from prompts.io.files import replace

COLUMNS = 4  # pairs side by side; as many rises, as many falls, and twice as many captions drawn at random
# Inches: an image's longer side, within a pair, between pairs, around all.
SIDE, GAP, APART, MARGIN = 1.25, 0.05, 0.32, 0.35
NARROWEST = 5.4  # inches between the margins: for the legend and the headings
CAPTION, FIGURE, HEADING, TITLE = 9.5, 10.5, 13.0, 16.0  # points
LINES = 4  # of a caption
INK, FAINT, RISE, FALL = "#1f2328", "#59636e", "#1a7f37", "#cf222e"
LARGEST = 1_000_000  # bytes
DOTS, FEWEST = 160, 70  # an inch: at first, and at least where a file of that many would be too large


class Scores(NamedTuple):
    """What one scorer says of start and result: `[N]` each. role: what it is to the run."""

    name: str
    role: str
    before: np.ndarray
    after: np.ndarray


class Section(NamedTuple):
    """What is shown under one heading: numbers of captions, in rows of at most COLUMNS."""

    heading: str
    note: str
    rows: list[list[int]]


def sections(n: int, scores: Scores | None, *, seed: int) -> list[Section]:
    """What is shown of n captions: the largest rises and falls of a score, as many of
    each, and captions drawn at random.

    Captions that all have a place in one half are shown once, in the order of their changes.
    """
    picks = sorted(np.random.default_rng(seed).permutation(n)[: (2 if scores else 4) * COLUMNS].tolist())
    drawn = Section("Drawn at random", f"{len(picks)} of {n:,} captions", _in_rows(picks))
    if scores is None:
        return [drawn]
    change = np.nan_to_num(scores.after - scores.before)
    order: list[int] = np.argsort(-change, kind="stable").tolist()
    if n <= 2 * COLUMNS:
        return [Section(f"All {n} captions", f"by the change of {scores.name}, {scores.role}", _in_rows(order))]
    rises = [i for i in order[:COLUMNS] if change[i] > 0]
    falls = [i for i in order[: -COLUMNS - 1 : -1] if change[i] < 0]
    what = f"{len(rises)} largest rises and {len(falls)} largest falls of {scores.role}, among {n:,} captions"
    return [Section(f"Largest changes of {scores.name}", what, [row for row in (rises, falls) if row]), drawn]


def _in_rows(picks: list[int]) -> list[list[int]]:
    return [picks[first : first + COLUMNS] for first in range(0, len(picks), COLUMNS)]


def said(shown: list[Section]) -> str:
    """The sections in a sentence's words."""
    return "; ".join(f"{section.heading[0].lower()}{section.heading[1:]} ({section.note})" for section in shown)


# ---- drawing ---------------------------------------------------------------------------------------------------------


class Sheet:
    """A figure on which places are inches from its upper left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor="white")

    def text(self, x: float, y: float, text: str, size: float, *, colour: str = INK, **options: Any) -> None:
        """Text whose top is at y."""
        place = (x / self.width, 1 - y / self.height)
        look: dict[str, Any] = {
            "fontsize": size,
            "color": colour,
            "va": "top",
            "linespacing": 1.25,
            "parse_math": False,
            **options,
        }
        self.figure.text(*place, text, **look)

    def image(self, x: float, y: float, width: float, height: float, image: Tensor) -> None:
        """An image `[3, H, W]` in [0, 1]; the pixels of a small one stay sharp squares."""
        place = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(place)
        pixels = np.nan_to_num(image.float().clamp(0, 1).permute(1, 2, 0).numpy())
        axes.imshow(pixels, aspect="auto", interpolation="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        for edge in axes.spines.values():
            edge.set(linewidth=0.5, color="#d1d9e0")

    def png(self) -> bytes:
        """The sheet as a file of at most LARGEST bytes, or as small as FEWEST dots make it."""
        dots = DOTS
        while True:
            target = io.BytesIO()
            with warnings.catch_warnings():
                # Of what the font does not know, a box is drawn.
                warnings.filterwarnings("ignore", message="Glyph .* missing")
                self.figure.savefig(target, format="png", dpi=dots, metadata={"Software": None})
            size = target.tell()
            if size <= LARGEST or dots <= FEWEST:
                return target.getvalue()
            dots = max(FEWEST, int(0.95 * dots * math.sqrt(LARGEST / size)))


def _wrapped(text: str, width: float, size: float) -> list[str]:
    """Text in at most LINES lines of at most `width` inches."""
    font, text = FontProperties(size=size), " ".join(text.split())
    for letters in range(max(8, int(20 * width)), 4, -1):
        lines = textwrap.wrap(text, letters, max_lines=LINES, placeholder=" …")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            widest = max(
                (text_to_path.get_text_width_height_descent(line, font, False)[0] for line in lines), default=0.0
            )
        if widest <= 72 * width:
            break
    return lines


def _lines(n: int, size: float) -> float:
    """Height of n lines in inches."""
    return n * 1.3 * size / 72


def draw(
    path: Path,
    before: Tensor,
    after: Tensor,
    prompts: list[str],
    shown: list[Section],
    scores: Scores | None,
    *,
    start: str,
    result: str,
) -> None:
    """Write `path`, a PNG: every caption of the sections with its images of `before` and
    `after`, `[N, 3, H, W]` in [0, 1].
    """
    height, width = (SIDE * side / max(before.shape[-2:]) for side in before.shape[-2:])
    pair = 2 * width + GAP
    columns = max(len(row) for section in shown for row in section.rows)
    room = max(columns * pair + (columns - 1) * APART, NARROWEST)
    captions = {i: _wrapped(prompts[i], pair, CAPTION) for section in shown for row in section.rows for i in row}
    legend = _wrapped(
        f"Left of each pair: {start}, the start; right: {result}, the result; same caption, same noise.", room, FIGURE
    )
    notes = [_wrapped(section.note, room, FIGURE) for section in shown]

    def row_height(row: list[int]) -> float:
        scores_height = _lines(1, FIGURE) if scores else 0
        return height + 0.07 + scores_height + _lines(max(len(captions[i]) for i in row), CAPTION) + 0.2

    top = MARGIN + _lines(1, TITLE) + _lines(len(legend), FIGURE)
    heads = [0.2 + _lines(1, HEADING) + _lines(len(note), FIGURE) + 0.1 for note in notes]
    body = sum(row_height(row) for section in shown for row in section.rows)
    sheet = Sheet(room + 2 * MARGIN, top + sum(heads) + body + MARGIN - 0.2)
    sheet.text(MARGIN, MARGIN, "Start and result", TITLE, weight="bold")
    sheet.text(MARGIN, MARGIN + _lines(1, TITLE), "\n".join(legend), FIGURE, colour=FAINT)
    y = top
    for section, note, head in zip(shown, notes, heads, strict=True):
        sheet.text(MARGIN, y + 0.2, section.heading, HEADING, weight="bold")
        sheet.text(MARGIN, y + 0.2 + _lines(1, HEADING), "\n".join(note), FIGURE, colour=FAINT)
        y += head
        for row in section.rows:
            for column, i in enumerate(row):
                x = MARGIN + column * (pair + APART)
                sheet.image(x, y, width, height, before[i])
                sheet.image(x + width + GAP, y, width, height, after[i])
                below = y + height + 0.07
                if scores:
                    _tell(sheet, x, below, pair, scores, i)
                    below += _lines(1, FIGURE)
                sheet.text(x, below, "\n".join(captions[i]), CAPTION, colour=FAINT)
            y += row_height(row)
    replace(path, lambda draft: draft.write_bytes(sheet.png()))


def _tell(sheet: Sheet, x: float, y: float, width: float, scores: Scores, i: int) -> None:
    """A caption's two scores on the left, their difference on the right; all of a sheet's with the same decimals."""
    largest = max(np.abs(each[np.isfinite(each)]).max(initial=0) for each in (scores.before, scores.after))
    decimals = min(6, max(0, 3 - math.floor(math.log10(largest)))) if largest else 0
    before, after = scores.before[i], scores.after[i]
    change = round(float(after - before), decimals) + 0.0  # never -0
    colour = RISE if change > 0 else FALL if change < 0 else FAINT
    sheet.text(x, y, f"{before:.{decimals}f} → {after:.{decimals}f}", FIGURE)
    sheet.text(
        x + width, y, f"{change:+.{decimals}f}".replace("-", "−"), FIGURE, colour=colour, weight="bold", ha="right"
    )

"""What GenEval's own code and ours are compared on: a small detector's sizes, random objects, and stand-ins for a CLIP.

Needs numpy and torch alone, so that it runs in the original's environment as it does in ours.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from upstream import seeded

#: Of MMDetection's Mask2Former: as deep as the published one, so that every name is the same, and narrow.
WIDTH, HEADS, FEATURES, INNER, QUERIES = 16, (1, 2, 4, 8), 32, 48, 12
#: Longest and shortest edge, so that a test takes seconds: of no size in the network are windows of 7 whole.
EDGES = (440, 260)
PICTURES = ("wide", "odd", "grey")

CASES = 10_000
SIDE = 512
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
#: Of a CLIP's embedding, and of the prompts' tokens that it knows.
EMBEDDING, TOKENS = 24, 49408


class Case(NamedTuple):
    """One image: the number of a row of GenEval's file, and per class the boxes that a detector might give.

    boxes: `[N, 5]`, float32: left, top, right, bottom, confidence; in no order. colours: of each.
    """

    row: int
    boxes: dict[str, np.ndarray]
    colours: dict[str, list[str]]


def cases(rows: Sequence[dict[str, Any]], classes: Sequence[str], n: int = CASES) -> Iterator[Case]:
    """Objects about as many, and of such colours, as the rows ask for."""
    for i in range(n):
        rng = seeded.generator("geneval", i)
        row = int(rng.integers(len(rows)))
        wanted = {clause["class"]: clause for clause in rows[row]["include"]}
        boxes, colours = {}, {}
        for name in dict.fromkeys([*wanted, classes[rng.integers(len(classes))]]):
            clause = wanted.get(name, {"count": 1})
            count = 20 if rng.random() < 0.03 else max(0, clause["count"] + int(rng.integers(-1, 3)))
            corner, size = rng.integers(0, SIDE // 2, (count, 2)), rng.integers(1, SIDE // 2, (count, 2))
            confidence = 1 - rng.random(count) ** 2 * (0.12 if rng.random() < 0.5 else 1)
            boxes[name] = np.column_stack([corner, corner + size, confidence]).astype(np.float32)
            likely = clause.get("color", "red")
            colours[name] = [likely if rng.random() < 0.6 else COLOURS[rng.integers(10)] for _ in range(count)]
        yield Case(row, boxes, colours)


def line(case: Case, correct: bool, reason: str) -> str:
    """What was made of a case. Two positions come in the order of a set, which is another in every process."""
    positions = re.sub(r"found (\S+(?: of)?) and (\S+(?: of)?) target", _sorted, reason)
    return f"{case.row} {int(correct)} {positions!r}"


def _sorted(found: re.Match[str]) -> str:
    return f"found {' and '.join(sorted(found.groups()))} target"


def detector_weights(layout: dict[str, Sequence[int]]) -> dict[str, Tensor]:
    """MMDetection's tensors by name; the numbering of positions in a window is no weight."""
    names = {name: shape for name, shape in layout.items() if not name.endswith("relative_position_index")}
    return {name: torch.from_numpy(array) for name, array in seeded.weights("geneval", names).items()}


def logits(height: int, width: int) -> tuple[Tensor, Tensor]:
    """What a network that is sure of itself might say: `[Q, 81]`, and `[Q, height, width]` discs, some empty."""
    rng = seeded.generator("geneval-logits", height, width)
    classes = 6 * rng.standard_normal((3 * QUERIES, 81))
    centre = rng.random((3 * QUERIES, 2, 1, 1)) * [[[height]], [[width]]]
    radius = np.where(np.arange(3 * QUERIES) % 4 == 3, -1, rng.uniform(1, height / 3, 3 * QUERIES))
    y, x = np.mgrid[0:height, 0:width]
    masks = radius[:, None, None] - np.hypot(y - centre[:, 0], x - centre[:, 1])
    return torch.from_numpy(classes.astype(np.float32)), torch.from_numpy(masks.astype(np.float32))


class Clip(torch.nn.Module):
    """In a CLIP's place: an embedding of tokens' mean, and a projection of an image's blocks of 16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        made = seeded.weights("geneval-clip", {"words": (TOKENS, EMBEDDING), "image": (EMBEDDING, 3 * 14 * 14)})
        self.words, self.image = torch.from_numpy(made["words"]), torch.from_numpy(made["image"])

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.words[tokens].mean(1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(pixels, 16).flatten(1) @ self.image.T


def cut_outs(image: np.ndarray, n: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """Boxes `[5]` as a detector gives them, and masks `[H, W]`, bool, that touch their edges: ellipses."""
    height, width = image.shape[:2]
    made = []
    for i in range(n):
        rng = seeded.generator("geneval-cut-out", height, width, i)
        left, top = int(rng.integers(0, width - 40)), int(rng.integers(0, height - 40))
        right, bottom = int(rng.integers(left + 8, width + 1)), int(rng.integers(top + 8, height + 1))
        y, x = np.mgrid[0:height, 0:width] + 0.5
        round_x, round_y = (x - (left + right) / 2) / (right - left), (y - (top + bottom) / 2) / (bottom - top)
        mask = round_x**2 + round_y**2 <= 0.25
        made.append((np.array([left, top, right, bottom, 0.5], dtype=np.float32), mask))
    return made

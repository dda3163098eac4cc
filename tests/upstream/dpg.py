"""Random trees of questions in DPG-Bench's table, and random answers, for both sides of the comparison.

Needs numpy alone.
"""

import csv
import io

import numpy as np

try:
    from upstream import seeded
except ImportError:  # the originals' environment runs scripts of this folder
    import seeded

COLUMNS = (
    "item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed", "tuple",
    "question_natural_language",
)  # fmt: skip
ITEMS, CROPS = 60, 4
KINDS = ("entity - whole", "attribute - color", "relation - spatial", "global -", "other - count")


def rows() -> list[dict[str, str]]:
    """One row a question: trees whose parents mostly come first, and some that do not, depend twice, or come twice.

    The first item's questions depend on its first one, which the original skips; the second item's do not.
    """
    made = []
    for item in range(ITEMS):
        rng = seeded.generator("dpg", item)
        size = int(rng.integers(2, 12))
        numbers = [int(number) for number in rng.permutation(size) + 1] if item % 3 == 2 else list(range(1, size + 1))
        for place, number in enumerate(numbers):
            # Of all others where the order is mixed, else of those before.
            others = [each for each in numbers if each != number] if item % 3 == 2 else numbers[:place]
            parents = sorted(rng.choice(others, min(len(others), int(rng.integers(0, 3))), replace=False).tolist())
            if item == 0 and number > 1:
                parents = [1]
            kind = KINDS[int(rng.integers(len(KINDS)))]
            made.append(
                {
                    "item_id": f"item{item}",
                    "text": f"scene {item}, with things",
                    "keywords": "",
                    "proposition_id": str(number),
                    "dependency": ", ".join(map(str, parents)) or "0",
                    "category_broad": kind.split(" ")[0],
                    "category_detailed": kind.split("- ")[-1],
                    "tuple": f"{kind} (thing {number})",
                    "question_natural_language": f"Is thing {number} in scene {item}?",
                }
            )
        if item % 10 == 9:  # a question that comes twice
            again = {**made[-1], "question_natural_language": f"Is thing {number} again in scene {item}?"}
            made.append(again)
    return made


def table() -> str:
    """The table as CSV."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows(rows())
    return file.getvalue()


def answer(crop: int, question: str) -> str:
    """What the judge says of a question about one of the four images."""
    return ("yes", "yes", "yes", "no", "yes, a thing")[int(seeded.generator("dpg", crop, question).integers(5))]


def grid(edge: int) -> np.ndarray:
    """Four images of one colour each, `[2 edge, 2 edge, 3]`, uint8: the crop's number in its levels."""
    crops = np.arange(CROPS, dtype=np.uint8).reshape(2, 2)
    return np.repeat(np.repeat(crops, edge, 0), edge, 1)[..., None].repeat(3, 2)

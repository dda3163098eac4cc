"""GenEval's rules: what is wrong with an image in which these objects were found (Ghosh et al. 2023, section 3)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from evaluate.scorers._detector import Detection

#: COCO's 80 classes in the detector's order, as the prompts call them: a mouse, a remote and a keyboard are reworded.
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")

#: An object counts above this confidence, the higher one where the prompt says how many.
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
MOST = 16  # objects of a class
SLACK = 0.1  # of both objects' sizes, by which they may overlap in the direction that is asked for

Objects = Sequence[Detection]
#: The colour of each object of a class.
ColoursOf = Callable[[Objects, str], list[str]]


def unknown(meta: Mapping[str, Any]) -> str:
    """What of a prompt's meta stands for nothing; '' where all is well."""
    clauses = [*meta["include"], *meta.get("exclude", ())] if isinstance(meta["include"], Sequence) else [None]
    for clause in clauses:
        if not isinstance(clause, Mapping) or not isinstance(clause.get("count"), int):
            return f"include and exclude are lists of objects with class and count, got {clause!r}"
        for key, known in (("class", CLASSES), ("color", COLOURS)):
            if (value := clause.get(key, known[0] if key == "color" else None)) not in known:
                return f"{key} {value!r} is none of {', '.join(get_close_matches(str(value), known, 3, 0))} and others"
    return ""


def threshold(meta: Mapping[str, Any]) -> float:
    """What an object's confidence must exceed for this prompt."""
    return COUNTING_THRESHOLD if meta["tag"] == "counting" else THRESHOLD


def by_class(detections: Iterable[Detection]) -> dict[str, list[Detection]]:
    """Most certain first, at most MOST of a class; whether they overlap is not looked at."""
    found: dict[str, list[Detection]] = {}
    for each in sorted(detections, key=lambda each: each.confidence)[::-1]:
        found.setdefault(CLASSES[each.label], []).append(each)
    return {name: objects[:MOST] for name, objects in found.items()}


def faults(found: Mapping[str, Objects], meta: Mapping[str, Any], colours_of: ColoursOf) -> list[str]:
    """What is wrong with the image, in the original's words; nothing if it is right.

    meta: `include`, all of which must be there, and `exclude`, none of which may be; each names a class and a count.
    """
    wrong: list[str] = []
    matched: list[Objects | None] = []
    for clause in meta["include"]:
        objects = found.get(clause["class"], ())[: clause["count"]]
        faulty = _faults_of(clause, objects, matched, colours_of)
        matched.append(None if faulty else objects)
        wrong += faulty
    for clause in meta.get("exclude", ()):
        name, count = clause["class"], len(found.get(clause["class"], ()))
        if count >= clause["count"]:
            wrong.append(f"expected {name}<{clause['count']}, found {count}")
    return wrong


def _faults_of(
    clause: Mapping[str, Any], objects: Objects, matched: Sequence[Objects | None], colours_of: ColoursOf
) -> list[str]:
    """Of one class that must be there. matched: the objects of the clauses before, None where they were faulty."""
    name, count = clause["class"], clause["count"]
    if len(objects) < count:
        return [f"expected {name}>={count}, found {len(objects)}"]
    if "color" in clause:
        colours, wanted = colours_of(objects, name), clause["color"]
        if colours.count(wanted) < count:
            seen = ", ".join(f"{colours.count(colour)} {colour}" for colour in COLOURS if colour in colours)
            return [f"expected {wanted} {name}>={count}, found {colours.count(wanted)} {wanted}; and {seen}"]
    if "position" in clause:
        wanted, target = clause["position"]
        if (targets := matched[target]) is None:
            return [f"no target for {name} to be {wanted}"]
        for each in objects:
            for other in targets:
                if wanted not in (seen_at := positions(each, other)):
                    return [f"expected {name} {wanted} target, found {' and '.join(seen_at)} target"]
    return []


def positions(a: Detection, b: Detection) -> list[str]:
    """Where A is to be seen from B: `left of` or `right of`, `above` or `below`, one of each or none.

    The way from centre to centre is shortened by SLACK of both sizes in each direction, then measured in lengths of the
    whole way; more than half of one counts. In float32, as the original.
    """
    corners = np.array([a.box, b.box], dtype=np.float32).reshape(2, 2, 2)
    way = corners[0].mean(0) - corners[1].mean(0)
    sizes = np.abs(corners[:, 1] - corners[:, 0])
    rest = np.maximum(np.abs(way) - SLACK * (sizes[0] + sizes[1]), 0) * np.sign(way)
    if (np.abs(rest) < 1e-3).all():
        return []
    x, y = rest / np.linalg.norm(way)
    told = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return [name for name, holds in told.items() if holds]

"""What a run folder of `align train` holds, as the page needs it: read as files, since nothing here knows `align`."""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evaluate.report.page_image import PageImage
from prompts.io.errors import UserError, first_line
from prompts.io.yaml import parse

#: Points a curve has at most; of a longer one each is the mean of as many steps as it takes.
POINTS = 1500
#: Pixels a side that a grid of samples has at most.
LARGEST = 1600
_SAMPLE = re.compile(r"step-(\d+)(-predictions)?\.png")


def is_run(path: Path) -> bool:
    """Whether a folder is one that `align train` writes."""
    return path.is_dir() and (path / "log.jsonl").is_file() and (path / "config.yaml").is_file()


def gather(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], list[PageImage]]:
    """Per run its `label`, its config as YAML, its curves by figure, `[steps, values]`, and steps at which
    samples were drawn; and the grids of samples, named tRUN/STEP and tRUN/STEP-predictions. Raises UserError
    for a log that is empty or torn.
    """
    counts = Counter(path.resolve().name for path in paths)
    runs, images = [], []
    for t, path in enumerate(paths):
        lines = _lines(path / "log.jsonl")
        names = dict.fromkeys(
            name for line in lines for name, value in line.items() if _is_number(value) and name != "step"
        )
        curves = {name: _curve(lines, name) for name in names}
        grids = _grids(t, path / "samples")
        name = path.resolve().name
        runs.append(
            {
                "label": name if counts[name] == 1 else str(path),
                "folder": str(path),
                "config": _config(path / "config.yaml"),
                "steps": lines[-1]["step"],
                "per_point": max((per_point for _, per_point in curves.values()), default=1),
                "curves": {name: points for name, (points, _) in curves.items()},
                "samples": [
                    {"step": step, **{kind: [p.width, p.height, bool(p.shrink)] for kind, p in kinds.items()}}
                    for step, kinds in sorted(grids.items())
                ],
            }
        )
        images += [image for kinds in grids.values() for image in kinds.values()]
    return runs, images


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lines(path: Path) -> list[dict[str, Any]]:
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            if not _is_number(line["step"]):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            if number == len(texts):  # the run is being written, or was killed in the middle of a line
                break
            raise UserError(
                f"{path}, line {number}: no JSON object with a step; give a folder that 'align train' wrote"
            ) from None
        lines.append(line)
    if not lines:
        raise UserError(f"{path}: an empty log, without a single step; train first")
    return lines


def _curve(lines: Sequence[dict[str, Any]], name: str) -> tuple[list[list[float | None]], int]:
    """Steps and values, and of how many each is the mean; a figure that is null at a step is a gap, one that is absent
    there is no point.
    """
    points_of_log = [
        (line["step"], line[name]) for line in lines if name in line and (line[name] is None or _is_number(line[name]))
    ]
    steps, values = (np.array(column, float) for column in zip(*points_of_log, strict=True))
    per_point = math.ceil(len(steps) / POINTS)
    points: list[list[float | None]] = [[], []]
    for first in range(0, len(steps), per_point):
        some = values[first : first + per_point]
        some = some[np.isfinite(some)]
        points[0].append(float(steps[first : first + per_point].mean()))
        points[1].append(float(f"{some.mean():.6g}") if len(some) else None)
    return points, per_point


def _config(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        if not isinstance(parse(text), dict):
            raise ValueError("no mapping")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{path}: cannot be read as a config ({first_line(error)}); give a folder that 'align train' wrote"
        ) from None
    return text


def _grids(t: int, folder: Path) -> dict[int, dict[str, PageImage]]:
    """By step, the grids of `samples` and of `predictions` that can be read."""
    grids: dict[int, dict[str, PageImage]] = {}
    for file in sorted(folder.glob("step-*.png")):
        if match := _SAMPLE.fullmatch(file.name):
            step, kind = int(match[1]), "predictions" if match[2] else "samples"
            if image := PageImage.of(file, f"t{t}/{step}-{kind}", largest=LARGEST):
                grids.setdefault(step, {})[kind] = image
    return grids

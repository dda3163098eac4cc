"""What runs of `evaluate run` hold, as the page needs it."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from evaluate import distribution
from evaluate.report.page_image import PageImage
from evaluate.results import records
from evaluate.results.records import Records
from prompts.io.errors import UserError

#: Pixels a side that an image in the grid has at most.
LARGEST = 384


@dataclass(frozen=True)
class ReportColumn:
    """A metric under one protocol with one file of weights, and one set of reference images: what figures must share
    to stand in one column.
    """

    name: str
    weights: str | None
    of_set: bool
    reference: str = ""
    lower: bool = dataclasses.field(default=False, compare=False)


def gather(paths: Sequence[Path]) -> tuple[dict[str, Any] | None, list[PageImage]]:
    """The runs' data, None of no run, and their images, named MODEL/ROW.

    A row is the k-th image of a prompt, in the order of the suite. `scores[model][metric][row]` is null where there is
    none, `reasons[model]` by row what scorers say of an image beside its scores, and `state[model]` has one character
    per row: `-` not asked for, `0` no image, `1` a small one, `2` one with a thumbnail. Raises UserError for what is no
    run, for runs of several suites, and for a run without records.
    """
    if not paths:
        return None, []
    files = [records.find(path) for path in paths]
    runs = [Records.load(file) for file in files]
    _check(paths, files, runs)
    frames = [run.frame.assign(copy=run.frame.groupby("id").cumcount()).set_index(["id", "copy"]) for run in runs]
    whole = pd.concat(sorted(frames, key=len, reverse=True))
    whole = whole[~whole.index.duplicated()]
    columns = list(dict.fromkeys(column for run in runs for column in _columns(run)))
    names = _names(columns)
    scored = [column for column in columns if not column.of_set]

    states, errors, sizes, images = [], [], [], []
    for m, (file, frame) in enumerate(zip(files, frames, strict=True)):
        state, failed, images_of_run = _images(m, file, frame.reindex(whole.index), set(frame.index))
        states.append(state)
        errors.append(failed)
        sizes.append([images_of_run[0].width, images_of_run[0].height] if images_of_run else [1, 1])
        images += images_of_run
    copies = int(whole.index.get_level_values("copy").max()) + 1
    data = {
        "suite": runs[0].meta["suite"],
        "models": [
            {"label": label, **_made(run, file)}
            for run, file, label in zip(runs, files, _labels(runs, files), strict=True)
        ],
        "metrics": [_metric(column, name) for column, name in zip(columns, names, strict=True)],
        "board": [[_figure(run, column) for column in columns] for run in runs],
        "ids": list(whole.index.get_level_values("id")),
        "copy": list(map(int, whole.index.get_level_values("copy"))) if copies > 1 else None,
        "prompts": list(whole["prompt"]),
        "groups": [
            _group(column.removeprefix("group."), whole[column]) for column in whole if column.startswith("group.")
        ],
        "scores": [
            [_scores(run, frame, column, whole.index) for column in scored]
            for run, frame in zip(runs, frames, strict=True)
        ],
        "state": states,
        "errors": errors,
        "reasons": [_reasons(frame.reindex(whole.index)) for frame in frames],
        "sizes": sizes,
    }
    return data, images


def _metric(column: ReportColumn, name: str) -> dict[str, Any]:
    text = distribution.variants().get(column.name, "")
    return {
        "name": name,
        "weights": column.weights,
        "set": column.of_set,
        "frechet": column.of_set and column.name.startswith(("fd-", "fid/", "patch-fid/")),
        "lower": column.lower,
        "what": text,
    }


def _check(paths: Sequence[Path], files: Sequence[Path], runs: Sequence[Records]) -> None:
    for path, run in zip(paths, runs, strict=True):
        if "prompt" not in run.frame:
            raise UserError(f"{path}: a baseline, which holds no prompts; give the run that it was made of")
        if run.frame.empty:
            raise UserError(f"{path}: an empty run, without a single record; run it again with 'evaluate run'")
        for field in ("suite", "suite_sha256"):
            if run.meta[field] != runs[0].meta[field]:
                raise UserError(
                    f"{path}: {field} is {run.meta[field]}, and {runs[0].meta[field]} in {paths[0]}; make a report for"
                    " each suite"
                )
    if twice := [file for file, count in Counter(file.resolve() for file in files).items() if count > 1]:
        raise UserError(f"{twice[0]}: given twice; give every run once")


def _columns(run: Records) -> list[ReportColumn]:
    scored = [ReportColumn(name, weights, False) for name, weights in run.meta["protocols"].items()]
    return scored + [
        ReportColumn(name, e["weights_sha256"], True, e.get("reference_sha256", ""), run.lower_is_better(name))
        for name, e in run.meta.get("distribution", {}).items()
    ]


def _names(columns: Sequence[ReportColumn]) -> list[str]:
    """Protocols; with the weights where one protocol was computed with several, and so the reference images."""
    count = Counter(column.name for column in columns)
    weights = Counter((column.name, column.weights) for column in columns)
    return [
        c.name
        + (f", weights {(c.weights or 'none')[:8]}" if count[c.name] > weights[c.name, c.weights] else "")
        + (f", reference {(c.reference or 'none')[:8]}" if weights[c.name, c.weights] > 1 else "")
        for c in columns
    ]


def _labels(runs: Sequence[Records], files: Sequence[Path]) -> list[str]:
    """The models' names; with the run's folder, and then its file, where two runs would be called the same."""
    labels = [run.meta["model"] for run in runs]
    for more in (lambda file: file.parent.name, lambda file: file.stem, str):
        count = Counter(labels)
        labels = [
            label if count[label] == 1 else f"{label} · {more(file)}" for label, file in zip(labels, files, strict=True)
        ]
    return labels


def _made(run: Records, file: Path) -> dict[str, Any]:
    made_by = run.meta.get("made_by", {})
    identity = {
        key: made_by[key]
        for key in ("model_sha256", "images_sha256", "dtype", "hardware", "versions")
        if key in made_by
    }
    return {
        "n": len(run.frame),
        "missing": run.missing,
        "metadata": {"records": str(file), "command": run.meta.get("command", ""), **identity},
    }


def _figure(run: Records, column: ReportColumn) -> dict[str, Any] | None:
    """One cell: value, 95 % interval, images behind it; None where the run did not measure it."""
    if column not in _columns(run):
        return None
    if column.of_set:
        estimate = run.meta["distribution"][column.name]
        value, low, high, n, note = (estimate[key] for key in ("value", "low", "high", "n", "note"))
    else:
        scored = run.frame[~run.frame[f"score.{column.name}"].isna()]
        value, error, n = run.mean(column.name)
        half = float(stats.t.ppf(0.975, scored["id"].nunique() - 1)) * error if error == error else math.nan
        low, high, note = value - half, value + half, ""
    return {"value": _number(value), "low": _number(low), "high": _number(high), "n": n, "note": note}


def _scores(run: Records, frame: pd.DataFrame, column: ReportColumn, index: pd.Index) -> list[float | None] | None:
    return list(map(_number, frame[f"score.{column.name}"].reindex(index))) if column in _columns(run) else None


def _reasons(frame: pd.DataFrame) -> dict[int, str]:
    """By row, the reason that each scorer gives for its score, where one does."""
    reasons: dict[int, list[str]] = {}
    for column in (column for column in frame if column.startswith("details.")):
        for row, details in enumerate(frame[column]):
            reason = json.loads(details).get("reason") if isinstance(details, str) else None
            if reason:
                reasons.setdefault(row, []).append(f"{column.removeprefix('details.')}: {reason}")
    return {row: "; ".join(each) for row, each in reasons.items()}


def _number(value: float) -> float | None:
    """Six figures: what can be seen, in little space. JSON has no NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _group(name: str, values: pd.Series) -> dict[str, Any]:
    codes, labels = pd.factorize(values.fillna("").astype(str).replace("", "(none)"), sort=True)
    return {"name": name, "values": list(labels), "of": codes.tolist()}


def _images(
    m: int, file: Path, frame: pd.DataFrame, requested: set[tuple[str, int]]
) -> tuple[str, dict[int, str], list[PageImage]]:
    """A run's state and errors by row, and its images."""
    by_hash = _by_hash(file.parent / "images")
    state, errors, images = "", {}, []
    for row, (key, digest, error) in enumerate(zip(frame.index, frame["image_sha256"], frame["error"], strict=True)):
        if key not in requested:
            state += "-"
            continue
        image = None
        if isinstance(digest, str):
            source = by_hash.get(digest)
            image = PageImage.of(source, f"{m}/{row}", largest=LARGEST) if source else None
            if image is None:
                errors[row] = (
                    "the image's file is not there" if source is None else f"{source}: cannot be read as an image"
                )
        if isinstance(error, str):
            errors[row] = error
        if image is None:
            state += "0"
            errors.setdefault(row, "no image was drawn")
        else:
            state += "2" if image.shrink else "1"
            images.append(image)
    return state, errors, images


def _by_hash(folder: Path) -> dict[str, Path]:
    """Files of a run's images by the hash of their pixels. A block whose index is torn counts as missing."""
    files: dict[str, Path] = {}
    for index in folder.glob("*/index.json"):
        try:
            rows = json.loads(index.read_text(encoding="utf-8"))
            files |= {
                row["sha256"]: index.parent / Path(row["file"]).name for row in rows if row["file"] and row["sha256"]
            }
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return files

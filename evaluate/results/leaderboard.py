"""Leaderboards: one CSV per suite, one row per run, written by programs only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from evaluate import environment
from evaluate.results.csv_io import read_csv, write_csv
from evaluate.results.records import Records
from prompts.io.errors import UserError

#: What every row has; the figures follow, four columns per metric: `NAME`, `NAME se` (or `NAME low` and `NAME high`),
#: `NAME n`, `NAME weights`; and `NAME reference` of what compares with images of the user's.
FIXED = (
    "model", "suite", "n", "complete", "model_sha256", "suite_sha256", "recipe", "split_batches", "dtype", "hardware",
    "versions", "command",
)  # fmt: skip


def row(records: Records, device: str) -> dict[str, Any]:
    """A run's row. It holds nothing that differs between an interrupted and an unbroken run."""
    frame, meta = records.frame, records.meta
    made_by = meta["made_by"]
    result: dict[str, Any] = {
        "model": meta["model"],
        "suite": meta["suite"],
        "n": len(frame),
        "complete": meta["complete"],
        "model_sha256": made_by.get("model_sha256") or made_by.get("images_sha256"),
        "suite_sha256": meta["suite_sha256"],
        "recipe": json.dumps(made_by.get("recipe"), sort_keys=True),
        # Rows drawn in a smaller batch than their block, for want of memory.
        "split_batches": (
            int((frame.groupby(frame.index // made_by["batch"])["batch"].transform("size") != frame["batch"]).sum())
            if "batch" in made_by
            else 0
        ),
        "dtype": made_by.get("dtype", ""),
        "hardware": environment.processor(device),
        "versions": environment.versions("onestep-align", "torch", "diffusers", "transformers", "open_clip_torch"),
        "command": meta["command"],
    }
    for protocol, weights in meta["protocols"].items():
        mean, error, n = records.mean(protocol)
        result |= {protocol: mean, f"{protocol} se": error, f"{protocol} n": n, f"{protocol} weights": weights or ""}
    for protocol, estimate in meta["distribution"].items():
        result |= {protocol: estimate["value"], **{f"{protocol} {key}": estimate[key] for key in ("low", "high", "n")}}
        result[f"{protocol} weights"] = estimate["weights_sha256"]
        if reference := estimate.get("reference_sha256"):
            result[f"{protocol} reference"] = reference
    return result


def read(path: Path) -> list[dict[str, str]]:
    """A leaderboard's rows, none where there is no file. Raises UserError where the file is no leaderboard."""
    rows = read_csv(path) if path.is_file() else []
    for number, old in enumerate(rows, 2):
        if missing := [name for name in FIXED if name not in old]:
            raise UserError(
                f"{path}, line {number}: no column {missing[0]!r}; not a leaderboard of this version: move it away"
            )
    return rows


def upsert(path: Path, new: Mapping[str, Any]) -> None:
    """Put a row into the leaderboard, in place of the one that the same command made before, of the same recipe,
    weights and reference images.

    Processes take turns. Raises UserError where the file is no leaderboard.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        rows = read(path)
        key: tuple[str, ...] = ("command", "model_sha256", "suite_sha256", "recipe", "hardware", "versions")
        text = {name: str(value) for name, value in new.items()}
        key += tuple(name for name in text if name.endswith((" weights", " reference")))
        rows = [old for old in rows if any(old.get(name, "") != text[name] for name in key)] + [text]
        columns = list(dict.fromkeys([*FIXED, *(name for each in rows for name in each)]))
        write_csv(
            [
                {name: each.get(name, "") for name in columns}
                for each in sorted(rows, key=lambda r: (r["model"], r["command"]))
            ],
            path,
        )

"""Records made up by tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluate.results import leaderboard
from evaluate.results.records import Records


def make(scores: Mapping[str, np.ndarray], *, seeds: int = 1, **meta: Any) -> Records:
    """A row per score; prompt i has the rows i * seeds to (i + 1) * seeds. Prompts fall into two categories in turn."""
    n = len(next(iter(scores.values())))
    prompts = np.arange(n) // seeds
    frame = pd.DataFrame(
        {
            "id": [f"parti/{i:04d}" for i in prompts],
            "prompt": [f"=an image, number {i}" for i in prompts],
            "group.category": np.where(prompts % 2, "Animals", "World Knowledge"),
            "seed": np.arange(n) % seeds,
            "image_sha256": [f"{i:064x}" for i in range(n)],
            "error": pd.Series([None] * n, dtype=object),
            **{f"score.{name}": np.asarray(values, float) for name, values in scores.items()},
        }
    )
    known = {
        "suite": "parti", "suite_sha256": "5" * 64, "model": "shapes/aligned", "n_expected": n,
        "protocols": dict.fromkeys(scores, "a" * 64), "complete": True,
    }  # fmt: skip
    return Records(frame, known | meta)


def score_pairs(
    rng: np.random.Generator,
    n: int,
    runs: int,
    *,
    drop: float = 0.0,
    mean: float = 28.0,
    sd: float = 2.0,
    correlation: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores `[n, runs]` of a baseline and of a run `drop` lower, normal, with this standard
    deviation and correlation by prompt.
    """
    shared, a, b = rng.normal(size=(3, n, runs)) * sd
    kept, own = correlation**0.5, (1 - correlation) ** 0.5
    return mean + kept * shared + own * a, mean - drop + kept * shared + own * b


def write_rows(path: Path, first: int) -> None:
    """What one of several processes does to a leaderboard: 20 rows, one after the other."""
    for i in range(first, first + 20):
        leaderboard.upsert(path, {name: f"{name} {i}" for name in leaderboard.FIXED} | {"model": f"=model {i}", "x": i})

"""A distribution metric in two runs: their difference, with an error from a jackknife that leaves the same prompts out
of both.
"""

from typing import NamedTuple

import numpy as np

from evaluate.results.records import Records
from evaluate.stats import jackknife_error

UNGROUPED = "holds no value of it without each group of prompts, being of an older version or of too few prompts"


class SetDifference(NamedTuple):
    """Values of A and B, the difference B - A, its standard error, and the degrees of freedom of that."""

    a: float
    b: float
    difference: float
    error: float
    freedom: int


def shared_metrics(a: Records, b: Records) -> list[str]:
    """The distribution metrics that both runs measured."""
    return [name for name in a.meta.get("distribution", {}) if name in b.meta.get("distribution", {})]


def as_many(a: Records, b: Records, metric: str) -> bool:
    """Whether a shared metric is of as many images in both, of the same prompts. Of fewer images a Fréchet distance is
    larger, whatever they are.
    """
    sizes = {run.meta["distribution"][metric]["n"] for run in (a, b)}
    return len(sizes) == 1 and set(a.frame["id"]) == set(b.frame["id"])


def jackknife_groups(run: Records, metric: str) -> dict[str, tuple[int, float]]:
    """`Estimate.left_out` of a metric that the run measured; empty where a single group is all there is."""
    groups: dict[str, tuple[int, float]] = run.meta["distribution"][metric].get("left_out") or {}
    return groups if len(groups) > 1 else {}


def unpaired(a: Records, b: Records, metric: str) -> str | None:
    """Why the difference of a shared metric has no error, in words; None where it has one."""
    sizes = [{group: n for group, (n, _) in jackknife_groups(run, metric).items()} for run in (a, b)]
    if not all(sizes):
        return f"one of the runs {UNGROUPED}"
    return None if sizes[0] == sizes[1] else "the runs are not of the same prompts and numbers of images"


def set_difference(a: Records, b: Records, metric: str) -> SetDifference:
    """B - A for runs that are not `unpaired`. Prompts fall into the same groups in both, so what A and B share by
    having drawn the same prompts cancels.
    """
    ours, theirs = (jackknife_groups(run, metric) for run in (a, b))
    counts = np.array([n for n, _ in ours.values()], float)
    without = np.array([theirs[group][1] - value for group, (_, value) in ours.items()])
    one, other = (run.meta["distribution"][metric]["value"] for run in (a, b))
    return SetDifference(one, other, other - one, jackknife_error(other - one, without, counts), len(counts) - 1)

"""Statistics of paired scores."""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Paired(NamedTuple):
    """Mean of `b - a`, its confidence interval, and the share of pairs in which b is higher (ties count half)."""

    mean: float
    low: float
    high: float
    win_rate: float


def paired_difference(a: np.ndarray, b: np.ndarray, *, level: float = 0.95) -> Paired:
    """Student's t interval of the mean difference of paired scores `a`, `b`: `[N]` each, N >= 2."""
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"paired scores need two equal lengths of at least 2, got {len(a)} and {len(b)}")
    difference = np.asarray(b, float) - np.asarray(a, float)
    mean, error = difference.mean(), stats.sem(difference)
    half = stats.t.ppf((1 + level) / 2, len(difference) - 1) * error
    win = float(((difference > 0) + 0.5 * (difference == 0)).mean())
    return Paired(float(mean), float(mean - half), float(mean + half), win)

"""Statistics of scores: standard errors, paired differences, bootstrap means, and several tests at once."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats


class Paired(NamedTuple):
    """Mean of `b - a` with its confidence interval, and the share of pairs in which b is higher
    (ties count half) with its own.
    """

    mean: float
    low: float
    high: float
    win_rate: float
    win_low: float
    win_high: float


def paired_difference(a: np.ndarray, b: np.ndarray, *, level: float = 0.95) -> Paired:
    """Student's t interval of the mean difference of paired scores `a`, `b`: `[N]` each, N >= 2; Wilson's (1927) of the
    win rate, which ties make too wide and never too narrow.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"paired scores need two equal lengths of at least 2, got {len(a)} and {len(b)}")
    difference = np.asarray(b, float) - np.asarray(a, float)
    mean, error = difference.mean(), stats.sem(difference)
    half = stats.t.ppf((1 + level) / 2, len(difference) - 1) * error
    win = float(((difference > 0) + 0.5 * (difference == 0)).mean())
    return Paired(float(mean), float(mean - half), float(mean + half), win, *wilson(win, len(difference), level=level))


def t_interval(value: float, error: float, freedom: int) -> tuple[float, float]:
    """`value` and Student's t half-widths of 95 % around it; NaN without a degree of freedom."""
    half = float(stats.t.ppf(0.975, freedom)) * error if freedom > 0 else math.nan
    return value - half, value + half


def percent(share: float, low: float, high: float) -> str:
    """A share and its interval, as people read them: `84% [82, 86]`."""
    return f"{share:.0%} [{100 * low:.0f}, {100 * high:.0f}]"


def wilson(share: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of n."""
    z2 = stats.norm.ppf((1 + level) / 2) ** 2 / n
    centre, half = share + z2 / 2, math.sqrt(z2 * (share * (1 - share) + z2 / 4))
    return max(0.0, float((centre - half) / (1 + z2))), min(1.0, float((centre + half) / (1 + z2)))


class Mean(NamedTuple):
    """A mean, its standard error, and how many scores it is of."""

    mean: float
    error: float
    n: int


def clustered_mean(scores: np.ndarray, clusters: np.ndarray) -> Mean:
    """Mean of `scores` `[N]` with a standard error that lets scores of one cluster (`clusters`, `[N]`,
    a prompt) depend on each other.

    The sandwich of Liang and Zeger (1986) with G/(G-1) for G clusters: with one score per cluster it is the usual s /
    sqrt(N). Scores that are NaN are left out of all three figures; the error of fewer than two clusters is NaN.
    """
    scored = ~np.isnan(scores)
    scores, (names, which) = (
        np.asarray(scores, float)[scored],
        np.unique(np.asarray(clusters)[scored], return_inverse=True),
    )
    n, groups = len(scores), len(names)
    if not n:
        return Mean(math.nan, math.nan, 0)
    mean = scores.mean()
    if groups < 2:
        return Mean(float(mean), math.nan, n)
    sums = np.bincount(which, weights=scores - mean)
    return Mean(float(mean), math.sqrt(groups / (groups - 1) * float(sums @ sums)) / n, n)


def macro_values(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Values `[N]` whose mean is the mean of the groups' mean scores, and whose spread is that mean's.

    scores, groups: `[N]`. Each is the macro-average plus N / (G n_g) times the score's deviation from its group's mean,
    n_g of N scores being of its group and G the number of groups: the average's influence function, so that what holds
    for a mean (errors, clusters, pairs, resampling) holds for it. Scores that are NaN stay so and count nowhere.
    """
    scored = ~np.isnan(scores)
    _, which = np.unique(groups[scored], return_inverse=True)
    counts = np.bincount(which)
    means = np.bincount(which, weights=scores[scored]) / counts
    values = np.full(len(scores), math.nan)
    values[scored] = means.mean() + (scores[scored] - means[which]) * (len(which) / len(counts) / counts)[which]
    return values


def jackknife_error(value: float, without: np.ndarray, counts: np.ndarray) -> float:
    """Standard error of a figure of a set that falls into groups (delete-a-group jackknife for unequal groups: Busing,
    Meijer and van der Leeden 1999).

    value: of the whole set. without, counts: `[G]`, the figure without each group, and how many items that has.
    """
    n = counts.sum()
    share = n / counts
    pseudo = share * value - (share - 1) * without
    # Busing et al.'s estimate is the pseudo-values' mean weighted by 1 / share.
    centre = (pseudo / share).sum()
    return math.sqrt(((pseudo - centre) ** 2 / (share - 1)).mean())


def bootstrap_means(rows: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Means `[resamples, K]` of `rows` `[N, K]` drawn again with replacement.

    A draw takes whole rows, so columns stay together.
    """
    n = len(rows)
    generator = np.random.default_rng(seed)
    # Resamples at a time: how often each row was drawn is a matrix, and their sums one product with it.
    chunk = max(1, 2**20 // n)
    means = []
    for first in range(0, resamples, chunk):
        size = min(chunk, resamples - first)
        drawn = generator.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        means.append(counts.astype(float) @ rows / n)
    return np.concatenate(means)


def expand(probability: np.ndarray, n: int) -> np.ndarray:
    """Tail probability of a bootstrapped mean of n -> what Student's t makes of it (Hesterberg 2015, section 5.3,
    "expanded percentiles").

    A bootstrapped mean varies too little, by sqrt((n - 1) / n), and knows nothing of the variance being an estimate.
    """
    wider: np.ndarray = stats.t.cdf(stats.norm.ppf(probability) * math.sqrt((n - 1) / n), n - 1)
    return wider


def shrink(probability: float, n: int) -> float:
    """The inverse of `expand`: which quantile of bootstrapped means bounds the mean with this tail probability."""
    return float(stats.norm.cdf(stats.t.ppf(probability, n - 1) * math.sqrt(n / (n - 1))))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's (1979) adjusted p-values, `[..., M]`: rejecting those at most alpha errs anywhere
    among the M with at most alpha.
    """
    order = p.argsort(-1)
    m = p.shape[-1]
    steps = np.take_along_axis(p, order, -1) * np.arange(m, 0, -1)
    adjusted = np.empty_like(steps)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, -1), 1), -1)
    return adjusted

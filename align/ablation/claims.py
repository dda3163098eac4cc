"""What a sweep was asked, and what its runs answer.

Seeds are what is sampled: every interval is over seeds, and runs of one seed, which draw the same batches, are paired.
An interval is of 95 % by itself. A verdict is not: the answers of a sweep are held to 5 % together (Holm 1979), which
is the most that the chance of any wrong one among them can be.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats
from scipy.interpolate import PchipInterpolator

from align.ablation.config import CENTRE, EqualReward, LessStable, SweepConfig
from evaluate.stats import holm, paired_difference, t_interval

LEVEL = 0.05  # of all answers together
POWER = 0.8
TURNED = 16  # seeds whose signs are turned in every way
GRID = np.linspace(0.1, 0.9, 17)  # places in the range of rewards that two curves share
HOLDS, OPPOSITE, INCONCLUSIVE = "holds", "the opposite holds", "inconclusive"

Results = Sequence[Mapping[str, Any]]


class Interval(NamedTuple):
    """A figure and its 95 % interval, NaN where there is none; of n seeds or runs."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        inside = f" [{self.low:.4g}, {self.high:.4g}]" if math.isfinite(self.low) and math.isfinite(self.high) else ""
        return f"{self.value:.4g}{inside}"


class Answer(NamedTuple):
    """A figure that bears on a claim. at: where it was read; p: two-sided, by itself; sign: -1 where the claim is that
    it is below `null`; over_seeds: whether its interval is Student's t; smooth: the figure where curves are read
    smoothly, which says what their bends may do to it.
    """

    claim: str
    quantity: str
    at: str
    interval: Interval
    p: float
    sign: int = 1
    null: float = 0.0
    over_seeds: bool = False
    smooth: float = math.nan


class Finding(NamedTuple):
    """An answer, with the p-value that all answers together leave it, and the smallest distance from `null` that would
    have been found with probability POWER at the first of Holm's levels; NaN where that is not known.
    """

    answer: Answer
    p_corrected: float
    detectable: float

    @property
    def verdict(self) -> str:
        """One of HOLDS, OPPOSITE, INCONCLUSIVE."""
        if not self.p_corrected < LEVEL:
            return INCONCLUSIVE
        return HOLDS if (self.answer.interval.value > self.answer.null) == (self.answer.sign > 0) else OPPOSITE


def by_seed(results: Results, cell: str, metric: str, seeds: int) -> np.ndarray:
    """A metric of a cell's runs, `[seeds]`, NaN where there is none; of a baseline, which
    has no seeds, the same for all.
    """
    values = np.full(seeds, np.nan)
    for row in results:
        if row["cell"] == cell and row["metrics"]:
            values[slice(None) if row["seed"] is None else row["seed"]] = row["metrics"][metric]["value"]
    return values


def mean_of(values: np.ndarray, minus: np.ndarray | None = None) -> Interval:
    """Mean over seeds, or of the differences paired by seed, with Student's t interval."""
    finite = np.isfinite(values) & (True if minus is None else np.isfinite(minus))
    values, base = values[finite], np.zeros(finite.sum()) if minus is None else minus[finite]
    n = len(values)
    if n < 2:
        return Interval(float((values - base)[0]) if n else math.nan, math.nan, math.nan, n)
    return Interval(*paired_difference(base, values)[:3], n)


def findings(config: SweepConfig, results: Results) -> list[Finding]:
    """Every answer to the sweep's claims, corrected for their number."""
    answers = [answer for claim in config.equal_reward for answer in _equal_reward(claim, config, results)]
    answers += [answer for claim in config.less_stable for answer in _less_stable(claim, config, results)]
    known = [i for i, answer in enumerate(answers) if math.isfinite(answer.p)]
    corrected = np.full(len(answers), math.nan)
    if known:
        corrected[known] = holm(np.array([answers[i].p for i in known]))
    level = LEVEL / max(1, len(known))
    return [Finding(answer, float(p), _detectable(answer, level)) for answer, p in zip(answers, corrected, strict=True)]


def _detectable(answer: Answer, level: float) -> float:
    """By the standard error that the runs showed, for a difference over seeds; a ratio's
    and a share's are not worked out.
    """
    interval = answer.interval
    if not answer.over_seeds or not math.isfinite(interval.high):
        return math.nan
    freedom = interval.n - 1
    critical = float(stats.t.ppf(1 - level / 2, freedom))
    # Far below, the other side's tail counts for nothing.
    errors = optimize.brentq(lambda away: stats.nct.sf(critical, freedom, away) - POWER, 0, 3 * critical)
    return _error(interval) * float(errors)


def _error(interval: Interval) -> float:
    return float((interval.high - interval.low) / 2 / stats.t.ppf(0.975, interval.n - 1))


def _p_of_difference(interval: Interval) -> float:
    if not math.isfinite(interval.high):
        return math.nan
    if (error := _error(interval)) > 0:
        return float(2 * stats.t.sf(abs(interval.value) / error, interval.n - 1))
    return math.nan if interval.value else 1.0


# ---- at equal reward -------------------------------------------------------------------------------------------------


def read_off(rewards: np.ndarray, values: np.ndarray, at: np.ndarray, *, smooth: bool = False) -> np.ndarray:
    """Values of the piecewise linear curve through points `[K]`, at rewards `[G]`; the end
    segments go on beyond their ends. smooth: of the cubics that rise and fall with the points (Fritsch and Carlson).
    """
    order = rewards.argsort(kind="stable")
    x, y = rewards[order], values[order]
    if smooth and (np.diff(x) > 0).all():
        cubics: np.ndarray = PchipInterpolator(x, y)(at)
        return cubics
    segment = np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2)
    width = x[segment + 1] - x[segment]
    share = np.divide(at - x[segment], width, out=np.full_like(at, 0.5), where=width > 0)
    result: np.ndarray = y[segment] + share * (y[segment + 1] - y[segment])
    return result


class Curve(NamedTuple):
    """Rewards and another metric of K cells, `[seeds, K]` each. A single cell is a point."""

    rewards: np.ndarray
    values: np.ndarray


class Compared(NamedTuple):
    """A difference at equal reward, the rewards between which it was read, and what it is on smooth curves."""

    low: float
    high: float
    difference: Interval
    smooth: float


def at_equal_reward(better: Curve, than: Curve) -> Compared | None:
    """`better` - `than`, read where both have the same reward.

    Two curves are compared by the mean of their difference over GRID, in the range of rewards that both reach; a point
    is compared with a curve at the point's own reward. Means over seeds are taken first. The interval leaves out one
    seed at a time from both at once (jackknife, Student's t of one degree fewer than seeds): with five seeds, the
    percentiles of a bootstrap are too narrow. Seeds are all that it counts: not that curves are read straight from
    point to point, nor that a baseline's images might have been others. None where no reward is shared, or fewer than
    two seeds have all runs.
    """
    whole = np.isfinite(np.concatenate([*better, *than], 1)).all(1)
    better, than = (Curve(*(part[whole] for part in curve)) for curve in (better, than))
    n = int(whole.sum())
    if n < 2:
        return None
    x, u = better.rewards.mean(0), than.rewards.mean(0)
    low, high = max(x.min(), u.min()), min(x.max(), u.max())
    point = min(len(x), len(u)) == 1
    if not (low <= high if point else low < high):
        return None

    places = low + GRID * (high - low)

    def difference(left_out: list[int], *, smooth: bool = False) -> float:
        x, y, u, v = (np.delete(part, left_out, 0).mean(0) for part in (*better, *than))
        if len(x) == 1:
            return float((y - read_off(u, v, x, smooth=smooth))[0])
        if len(u) == 1:
            return float((read_off(x, y, u, smooth=smooth) - v)[0])
        return float((read_off(x, y, places, smooth=smooth) - read_off(u, v, places, smooth=smooth)).mean())

    found = _jackknifed(difference, range(n))
    return Compared(float(places[0]), float(places[-1]), found, difference([], smooth=True))


def _jackknifed(figure: Callable[[list[int]], float], seeds: Sequence[int]) -> Interval:
    """A figure, which is told the seeds to leave out, with the interval that leaving out one at a time gives: Student's
    t of one degree fewer than seeds.
    """
    n, value, without = len(seeds), figure([]), np.array([figure([seed]) for seed in seeds])
    return Interval(value, *t_interval(value, math.sqrt((n - 1) * without.var()), n - 1), n)


def _equal_reward(claim: EqualReward, config: SweepConfig, results: Results) -> list[Answer]:
    reward = next(iter(config.measure.metrics))
    title = f"at equal reward, {claim.better} is better than {claim.than}"

    def curve(name: str, metric: str) -> Curve:
        cells = config.curves.get(name, (name,))
        return Curve(
            *(np.stack([by_seed(results, cell, m, config.seeds) for cell in cells], 1) for m in (reward, metric))
        )

    answers = []
    for metric in claim.metrics or list(config.measure.metrics)[1:]:
        direction = config.measure.metrics[metric]
        quantity = f"{metric} ({direction} is better), {claim.better} - {claim.than}"
        compared = at_equal_reward(curve(claim.better, metric), curve(claim.than, metric))
        if compared is None:
            nothing = Interval(math.nan, math.nan, math.nan, 0)
            answers.append(Answer(title, quantity, "no reward is shared, or runs are missing", nothing, math.nan))
            continue
        low, high, interval, smooth = compared
        at = f"{reward} = {low:.4g}" + (f" to {high:.4g}" if high > low else "")
        sign, p = 1 if direction == "higher" else -1, _p_of_difference(interval)
        answers.append(Answer(title, quantity, at, interval, p, sign, over_seeds=True, smooth=smooth))
    return answers


# ---- stability -------------------------------------------------------------------------------------------------------


def spread_ratio(worse: Sequence[np.ndarray], than: Sequence[np.ndarray]) -> tuple[Interval, float]:
    """Ratio of the standard deviations over seeds, pooled over cells `[seeds]` each, with its interval and the
    two-sided p-value of a ratio of 1.

    Its logarithm is jackknifed, a seed left out of all cells at once, for runs of one seed share their batches.
    """

    def logarithm(left_out: list[int]) -> float:
        a, b = (_pooled_variance([np.delete(part, left_out) for part in parts]) for parts in (worse, than))
        return math.log(a / b) / 2 if a > 0 and b > 0 else math.nan

    seeds = np.flatnonzero(np.isfinite(np.array([*worse, *than])).any(0)).tolist()
    if len(seeds) < 3:  # with one left out, none of the others has a spread
        return Interval(math.exp(logarithm([])), math.nan, math.nan, len(seeds)), math.nan
    found = _jackknifed(logarithm, seeds)
    ratio = Interval(math.exp(found.value), math.exp(found.low), math.exp(found.high), found.n)
    return ratio, _p_of_difference(found)


def _pooled_variance(parts: Sequence[np.ndarray]) -> float:
    kept = [part[np.isfinite(part)] for part in parts]
    scatter = sum(float(((part - part.mean()) ** 2).sum()) for part in kept if len(part))
    freedom = sum(max(len(part) - 1, 0) for part in kept)
    return scatter / freedom if freedom else math.nan


def share_difference(a: int, n: int, b: int, m: int) -> Interval:
    """`a / n - b / m` with Newcombe's (1998, method 10) interval of the difference of two independent shares."""
    first, second = (stats.binomtest(k, of).proportion_ci(method="wilson") for k, of in ((a, n), (b, m)))
    p, q = a / n, b / m
    low = p - q - math.hypot(p - first.low, second.high - q)
    high = p - q + math.hypot(first.high - p, q - second.low)
    return Interval(p - q, low, high, n + m)


def sign_flips(differences: np.ndarray) -> float:
    """The p-value of a mean of zero, of paired differences `[seeds]`: the share of all ways to turn their signs whose
    mean is as far from it; with more than TURNED seeds, of 2^TURNED ways drawn at random, and these as they are.
    """
    if (n := len(differences)) <= TURNED:
        signs = np.array(list(product((1, -1), repeat=n)))
    else:
        signs = np.random.default_rng(0).choice((1, -1), (2**TURNED, n))
        signs[0] = 1
    return float((abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean())


def stopped(results: Results, cells: Sequence[str]) -> tuple[int, int]:
    """How many runs of the cells ended before their last step, and how many there are."""
    rows = [row for row in results if row["cell"] in cells]
    return sum(row["stopped"] is not None for row in rows), len(rows)


def _less_stable(claim: LessStable, config: SweepConfig, results: Results) -> list[Answer]:
    title = f"{', '.join(claim.worse)} vary more over seeds, and are stopped more often, than {', '.join(claim.than)}"
    answers = []
    for metric in claim.metrics or config.measure.metrics:
        worse, than = (
            [by_seed(results, cell, metric, config.seeds) for cell in side] for side in (claim.worse, claim.than)
        )
        ratio, p = spread_ratio(worse, than)
        answers.append(
            Answer(title, f"{metric}, ratio of standard deviations", "pooled over cells", ratio, p, null=1.0)
        )
    (a, n), (b, m) = stopped(results, claim.worse), stopped(results, claim.than)
    difference = share_difference(a, n, b, m) if n and m else Interval(math.nan, math.nan, math.nan, n + m)
    at = f"{a} of {n} against {b} of {m}"
    shares = []  # by seed, whose runs share their batches
    for seed in sorted({row["seed"] for row in results if row["seed"] is not None}):
        runs = [row for row in results if row["seed"] == seed]
        (a, n), (b, m) = stopped(runs, claim.worse), stopped(runs, claim.than)
        shares += [a / n - b / m] if n and m else []
    # Where no run was stopped, or with too few seeds for any outcome to be rare enough, nothing can be found: that is
    # no answer among the others.
    p = sign_flips(np.array(shares)) if any(shares) and 2 ** (1 - len(shares)) < LEVEL else math.nan
    answers.append(Answer(title, "share of runs stopped, difference", at, difference, p))
    return answers


def cell_rows(config: SweepConfig, results: Results) -> list[dict[str, Any]]:
    """A row for each cell and metric: mean over seeds, and difference from the centre paired by seed, each with its
    interval. Then the baselines.
    """
    rows = []
    for cell in (CENTRE, *config.cells, *config.baselines):
        n_stopped, runs = stopped(results, [cell])
        for metric, direction in config.measure.metrics.items():
            values, base = (by_seed(results, name, metric, config.seeds) for name in (cell, CENTRE))
            mean = Interval(float(values[0]), math.nan, math.nan, 1) if cell in config.baselines else mean_of(values)
            rows.append(
                {"cell": cell, "metric": metric, "better": direction, "runs": runs, "stopped": n_stopped}
                | dict(zip(("mean", "low", "high", "n"), mean, strict=True))
                | {
                    f"difference {k}": x
                    for k, x in zip(("mean", "low", "high", "n"), mean_of(values, base), strict=True)
                }
            )
    return rows

"""Which of several models are ahead, metric by metric, which cannot be told apart, and which metrics agree.

Paired differences of all pairs on the prompts that all models have, with Holm's correction over a metric's pairs, give
every model the places it can have; of distribution metrics the differences are `sets.set_difference`. Strengths are
those of Bradley and Terry (1952) from prompts won.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from evaluate.results import sets
from evaluate.results.compare import without_nan
from evaluate.results.csv_io import write_csv
from evaluate.results.records import Records
from evaluate.results.side_by_side import check_comparable
from evaluate.stats import bootstrap_means, holm, shrink
from prompts.io.errors import UserError
from prompts.io.files import write_as, write_json

LEVEL = 0.95
RESAMPLES = 2000
#: Newton's steps in the fit of strengths: about ten, more where a model nearly always wins. None is longer than 1.
FIT = 100


class Ranked(NamedTuple):
    """What a metric says of one model over n prompts that all models have.

    first, last: the places that it can have, all models' at once with a certainty of LEVEL: one more than there are
    models significantly ahead of it, and one less than there are places not behind. strength: log-odds of winning a
    prompt against a model of strength 0, the models' mean, with its interval by itself; NaN below two prompts, and of
    a distribution metric.
    """

    metric: str
    model: str
    n: int
    mean: float
    first: int
    last: int
    strength: float
    low: float
    high: float


class Ranking(NamedTuple):
    """ranked: a metric's models, the best first, metric after metric. agreement: Kendall's tau-b of the order of models
    between two metrics.
    """

    ranked: list[Ranked]
    agreement: dict[tuple[str, str], float]

    def least_agreeing(self) -> tuple[str, float] | None:
        """The metric whose order is least like the others', and its mean tau; None for fewer than three."""
        # Where a metric has all models equal, it orders them neither like the others nor unlike them.
        known = {pair: tau for pair, tau in self.agreement.items() if math.isfinite(tau)}
        names = list(dict.fromkeys(name for pair in known for name in pair))
        if len(names) < 3:
            return None
        taus = {name: np.mean([tau for pair, tau in known.items() if name in pair]) for name in names}
        name = min(taus, key=lambda each: taus[each])
        return name, float(taus[name])


def rank(runs: Sequence[Records], *, seed: int = 0) -> Ranking:
    """The ranking by every protocol that all runs have. A prompt's score is the mean over its images; prompts without
    one in some run are left out. seed: of the resampled prompts.

    Raises UserError where two runs cannot be compared, or have one name, or nothing can be ranked.
    """
    if len(runs) < 2:
        raise UserError("one run has nobody to be ranked among; name two or more")
    check_comparable(runs)
    models, tables = [run.meta["model"] for run in runs], [run.by_prompt() for run in runs]
    shared = tables[0].index
    for table in tables[1:]:
        shared = shared.intersection(table.index)
    metrics = [name for name in runs[0].meta["protocols"] if all(name in run.meta["protocols"] for run in runs)]
    ranked, means = [], {}
    for metric in metrics:
        scored = pd.concat([table.loc[shared, metric] for table in tables], axis=1).dropna()
        values = [run.values(metric, scored.iloc[:, i]) for i, run in enumerate(runs)]
        rows = rank_scores(metric, models, scored.to_numpy(float), values=np.stack(values, axis=1), seed=seed)
        mean = {row.model: row.mean for row in rows}
        means[metric] = [mean[model] for model in models]
        ranked += rows
    unpaired = _unpaired(runs)
    for metric in (name for name in _shared_sets(runs) if name not in unpaired):
        rows = rank_sets(metric, runs)
        sign = -1 if runs[0].lower_is_better(metric) else 1
        mean = {row.model: sign * row.mean for row in rows}
        means[metric] = [mean[model] for model in models]
        ranked += rows
    if not ranked:
        raise UserError(
            "the runs share no metric that can be ranked"
            + "".join(f"; {metric}: {reason}" for metric, reason in unpaired.items())
        )
    agreement = {
        pair: float(stats.kendalltau(means[pair[0]], means[pair[1]]).statistic) for pair in combinations(means, 2)
    }
    return Ranking(ranked, agreement)


def rank_scores(
    metric: str, models: Sequence[str], scores: np.ndarray, *, values: np.ndarray | None = None, seed: int = 0
) -> list[Ranked]:
    """Models by their mean, the highest first.

    scores: `[N, M]`, one of every model on each of N prompts. values: what means are of, where it is not the scores
    (`Records.values`).
    """
    n, m = scores.shape
    values = scores if values is None else values
    mean = values.mean(axis=0) if n else np.full(m, math.nan)
    ahead = significantly_ahead(values)
    strength, low, high = strengths(scores, seed=seed)
    rows = [
        Ranked(
            metric,
            model,
            n,
            float(mean[i]),
            1 + int(ahead[:, i].sum()),
            m - int(ahead[i].sum()),
            float(strength[i]),
            float(low[i]),
            float(high[i]),
        )
        for i, model in enumerate(models)
    ]
    return sorted(rows, key=lambda row: (math.isnan(row.mean), -row.mean))


def _shared_sets(runs: Sequence[Records]) -> list[str]:
    """The distribution metrics that every run has."""
    measured = [run.meta.get("distribution", {}) for run in runs]
    return [name for name in sets.shared_metrics(runs[0], runs[0]) if all(name in each for each in measured)]


def _unpaired(runs: Sequence[Records]) -> dict[str, str]:
    """Why a distribution metric that every run has cannot be ranked, by its name."""
    reasons = {
        name: [reason for run in runs[1:] if (reason := sets.unpaired(runs[0], run, name))]
        for name in _shared_sets(runs)
    }
    return {name: each[0] for name, each in reasons.items() if each}


def rank_sets(metric: str, runs: Sequence[Records]) -> list[Ranked]:
    """Models by a distribution metric, the best first."""
    m, sign = len(runs), -1 if runs[0].lower_is_better(metric) else 1
    found = [sets.set_difference(runs[j], runs[i], metric) for i, j in combinations(range(m), 2)]
    difference, error = (np.array([sign * each.difference for each in found]), np.array([e.error for e in found]))
    ahead = _ahead(m, difference, error, found[0].freedom)
    n = runs[0].frame["id"].nunique()
    rows = [
        Ranked(
            metric,
            run.meta["model"],
            n,
            run.meta["distribution"][metric]["value"],
            1 + int(ahead[:, i].sum()),
            m - int(ahead[i].sum()),
            *[math.nan] * 3,
        )
        for i, run in enumerate(runs)
    ]
    return sorted(rows, key=lambda row: (math.isnan(row.mean), -sign * row.mean))


def significantly_ahead(scores: np.ndarray) -> np.ndarray:
    """`[M, M]`: whether the row's model is ahead of the column's, by Student's t of paired differences, two-sided, with
    Holm's correction over all pairs; one false answer or more has a probability of at most 1 - LEVEL.
    """
    n, m = scores.shape
    if n < 2:
        return np.zeros((m, m), dtype=bool)
    differences = np.stack([scores[:, i] - scores[:, j] for i, j in combinations(range(m), 2)], axis=1)
    return _ahead(m, differences.mean(axis=0), stats.sem(differences, axis=0), n - 1)


def _ahead(m: int, difference: np.ndarray, error: np.ndarray, freedom: int) -> np.ndarray:
    """The same from the pairs' differences and their standard errors, in the order of `combinations`."""
    ahead = np.zeros((m, m), dtype=bool)
    # Models that are equal on every prompt are no different; a difference that never varies is certain.
    certain = np.where(difference == 0, 0.0, np.copysign(np.inf, difference))
    t = np.divide(difference, error, out=certain, where=error > 0)
    found = holm(2 * stats.t.sf(abs(t), freedom)) <= 1 - LEVEL
    for (i, j), is_found, gain in zip(combinations(range(m), 2), found, difference, strict=True):
        if is_found:
            ahead[(i, j) if gain > 0 else (j, i)] = True
    return ahead


def strengths(scores: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bradley and Terry's log-strengths `[M]`, their mean 0, and the ends of their intervals of LEVEL, which prompts
    drawn again with replacement give.
    """
    n, m = scores.shape
    if n < 2:
        return (np.full(m, math.nan),) * 3
    won = (scores[:, :, None] > scores[:, None, :]) + 0.5 * (scores[:, :, None] == scores[:, None, :])
    drawn = bootstrap_means(won.reshape(n, m * m), resamples=RESAMPLES, seed=seed).reshape(-1, m, m)
    tail = shrink((1 - LEVEL) / 2, n)
    low, high = np.quantile(bradley_terry(drawn * n), [tail, 1 - tail], axis=0)
    return bradley_terry(won.sum(axis=0)), low, high


def bradley_terry(won: np.ndarray) -> np.ndarray:
    """Log-strengths `[..., M]`, their mean 0, from `won` `[..., M, M]`: prompts on which the row's model was ahead of
    the column's, ties counted half for each.

    Every pair is given half a prompt more for either side, or whoever wins always would be infinitely strong. The
    likelihood, which is concave, is climbed by Newton's steps: minorisation (Hunter 2004) takes thousands where one
    model nearly always wins.
    """
    m = won.shape[-1]
    games = (won + 0.5) * (1 - np.eye(m))
    played, wins = games + np.swapaxes(games, -1, -2), games.sum(axis=-1)
    strength = np.zeros(won.shape[:-1])
    for _ in range(FIT):
        expected = 1 / (1 + np.exp(strength[..., None, :] - strength[..., :, None]))
        slope = wins - (played * expected).sum(axis=-1)
        bend = played * expected * (1 - expected)
        # The likelihood does not change with the mean of strengths, so that curvature is given there.
        curvature = np.eye(m) * bend.sum(axis=-1)[..., None] - bend + 1 / m
        step = np.linalg.solve(curvature, slope[..., None])[..., 0]
        step /= np.maximum(1, abs(step).max(axis=-1, keepdims=True))
        strength += step
        if abs(step).max() < 1e-9:
            break
    return strength - strength.mean(axis=-1, keepdims=True)


# ---- what people read ------------------------------------------------------------------------------------------------


def show(runs: Sequence[Records], ranking: Ranking) -> None:
    """Print a table of every metric's models, and how far metrics agree."""
    from rich.table import Table

    from evaluate.console import printer

    table = Table(
        title=f"{runs[0].meta['suite']}: {len(runs)} models",
        caption=(
            f"place: where a model can stand, all at once, {LEVEL:.0%}; strength: log-odds of winning a prompt against"
            f" the mean model, with its {LEVEL:.0%} interval"
        ),
    )
    for column in ("metric", "place", "model", "prompts", "mean", "strength"):
        table.add_column(column, justify="left" if column in ("metric", "model") else "right")
    before = ""
    for row in ranking.ranked:
        if before and row.metric != before:
            table.add_section()
        table.add_row(
            row.metric if row.metric != before else "",
            str(row.first) if row.first == row.last else f"{row.first} to {row.last}",
            row.model,
            f"{row.n:,}",
            f"{row.mean:.4f}",
            "" if math.isnan(row.strength) else f"{row.strength:+.2f} [{row.low:+.2f}, {row.high:+.2f}]",
        )
        before = row.metric
    console = printer()
    console.print(table)
    for run in runs:
        if run.missing:
            console.print(f"{run.meta['model']} is incomplete: {run.missing}")
    for metric, reason in _unpaired(runs).items():
        console.print(f"{metric} is not ranked: {reason}")
    if least := ranking.least_agreeing():
        console.print(
            f"{least[0]} orders the models least as the other metrics do: Kendall's tau {least[1]:+.2f} on average"
        )


def write(path: Path, runs: Sequence[Records], ranking: Ranking) -> None:
    """Write the ranking as .csv, a line for each metric and model, or with the metrics' agreement as .json."""
    suite = runs[0].meta["suite"]
    rows = [row._asdict() for row in ranking.ranked]
    agreement = [without_nan({"metrics": list(pair), "kendall_tau": tau}) for pair, tau in ranking.agreement.items()]
    content = {"suite": suite, "level": LEVEL, "rows": [without_nan(row) for row in rows], "agreement": agreement}
    write_as(
        path,
        {
            ".csv": lambda path: write_csv([{"suite": suite} | row for row in rows], path),
            ".json": lambda path: write_json(path, content),
        },
    )

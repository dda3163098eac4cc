"""The gate: has a model become worse than its baseline?

Scores are paired by prompt (a prompt's score is the mean over its images). For each metric, D is the true mean of the
differences current - baseline, and the margin m >= 0 is the smallest drop that matters. From the bootstrap of the
prompts' mean difference:

* regressed: the evidence says D < -m. Holm's correction over the metrics holds the chance that a run in which no metric
  has dropped by more than its margin is called regressed, on any of them, to alpha.
* pass: the evidence says D >= -m, for each metric at alpha. All must hold at once, which needs no correction (Berger
  1982): the chance of passing a run in which some metric has dropped by more than its margin is at most alpha.
* inconclusive: neither; more prompts, or more images per prompt, would tell.

One regressed metric makes a run regressed; else one inconclusive metric makes it inconclusive. With a margin of 0 only
a change for the better, or no change at all, can pass.

Distribution metrics have no score per prompt. A jackknife leaves the same groups of prompts out of both runs, so that
their difference has an error, with which Student's t gives the same two p-values; where lower is better, a drop is a
rise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from scipy import stats

from evaluate.results.compare import mismatch
from evaluate.results.records import Records
from evaluate.results.sets import UNGROUPED, jackknife_groups, set_difference, unpaired
from evaluate.stats import bootstrap_means, expand, holm, shrink
from prompts.io.errors import UserError

#: Smallest drop that matters where none is named: this share of the baseline's mean.
MIN_EFFECT = 0.01
RESAMPLES = 10_000
SEED = 0
#: `detectable` is the drop that is found this often.
POWER = 0.95


class Verdict(StrEnum):
    """What the gate says."""

    PASS = "pass"
    REGRESSED = "regressed"
    INCONCLUSIVE = "inconclusive"
    INCOMPLETE = "incomplete"


EXIT_CODES = {Verdict.PASS: 0, Verdict.REGRESSED: 1, Verdict.INCONCLUSIVE: 3, Verdict.INCOMPLETE: 4}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What speaks about one metric before others are looked at: its values, their difference (current - baseline) with
    its one-sided bounds at alpha, standard error and degrees of freedom.

    p_drop: of "it has not become worse by more than the margin". p_hold: of "it has become worse by more".
    """

    metric: str
    baseline: float
    current: float
    difference: float
    low: float
    high: float
    margin: float
    p_drop: float
    p_hold: float
    error: float
    freedom: int
    note: str = ""

    def t(self, probability: float) -> float:
        """Student's quantile for this many degrees of freedom."""
        return float(stats.t.ppf(probability, self.freedom))


@dataclass(frozen=True, kw_only=True)
class Finding(Evidence):
    """The verdict on one metric; p_drop is adjusted for all metrics.

    detectable: the drop that this many prompts, this spread and this many metrics would show in POWER of runs.
    """

    verdict: Verdict
    detectable: float


@dataclass(frozen=True)
class Outcome:
    """The verdict on a run, why, and what it rests on. notes: which metrics are not judged, and why."""

    verdict: Verdict
    reason: str
    n: int
    alpha: float
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()


def tail(means: np.ndarray, margins: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(p_drop, p_hold), `[K]` each, not adjusted, from bootstrapped mean differences `[B, K]`
    of n prompts and margins `[K]`.
    """
    resamples = len(means)
    below = (means < -margins).sum(0)
    # No p-value is 0: the data themselves count as one more draw.
    p_drop, p_hold = ((1 + count) / (1 + resamples) for count in (resamples - below, below))
    return expand(p_drop, n), expand(p_hold, n)


def decide(p_drop: np.ndarray, p_hold: np.ndarray, alpha: float) -> np.ndarray:
    """Verdicts `[..., M]` on metrics, from p-values `[..., M]`: p_drop adjusted over the metrics, p_hold not."""
    return np.where(p_drop <= alpha, Verdict.REGRESSED, np.where(p_hold <= alpha, Verdict.PASS, Verdict.INCONCLUSIVE))


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst of a run's metrics."""
    return next((each for each in (Verdict.REGRESSED, Verdict.INCONCLUSIVE) if each in verdicts), Verdict.PASS)


def unusable(current: Records, baseline: Records) -> str | None:
    """Why a run cannot be judged by a baseline, in words; None where it can."""
    for name, records in (("the run", current), ("the baseline", baseline)):
        if records.missing:
            return f"{name} is incomplete: {records.missing}"
    if reason := mismatch(baseline, current):
        return reason
    for kind in ("protocols", "distribution"):
        if lacking := [name for name in baseline.meta.get(kind, {}) if name not in current.meta.get(kind, {})]:
            return f"the run has no {lacking[0]}, which the baseline has"
    for name in baseline.meta.get("distribution", {}):
        if jackknife_groups(baseline, name) and (reason := unpaired(baseline, current, name)):
            return f"{name}: {reason}"
    expected, present = (
        set(zip(records.frame["id"], records.frame["seed"], strict=True)) for records in (baseline, current)
    )
    if expected != present:
        return (
            f"{len(expected - present):,} of the baseline's {len(expected):,} images (prompt and seed) are not in the"
            f" run, and {len(present - expected):,} others are"
        )
    return None


def check(
    current: Records,
    baseline: Records,
    *,
    min_effect: float = MIN_EFFECT,
    margins: Mapping[str, float] | None = None,
    alpha: float = 0.05,
) -> Outcome:
    """Judge a run by a baseline.

    min_effect: the margin as a share of the baseline's value (of its size, whatever its sign). margins: absolute
    ones, in the metric's units, for the metrics named; what a metric whose scores lie on both sides of zero
    needs, since a share of its mean says little. Raises UserError for a margin of a metric that the baseline
    lacks, and for fewer than two prompts.
    """
    limits, sets = dict(margins or {}), list(baseline.meta.get("distribution", {}))
    metrics = [*baseline.meta["protocols"], *sets]
    if unknown := [name for name in limits if name not in metrics]:
        raise UserError(
            f"--min-effect {unknown[0]}: the baseline has no such metric; it has {', '.join(metrics) or 'none'}"
        )
    if reason := unusable(current, baseline):
        return Outcome(Verdict.INCOMPLETE, reason, 0, alpha, ())
    if (n := baseline.frame["id"].nunique()) < 2:
        raise UserError(f"{n} prompt is too few for the gate; run more of the suite")
    judged = [name for name in sets if jackknife_groups(baseline, name)]
    notes = [f"{name} is not judged: the baseline {UNGROUPED}" for name in sets if name not in judged]
    measured = [*current.meta["protocols"], *current.meta.get("distribution", {})]
    notes += [
        f"{name} is not judged: the baseline has none; accept the run as its baseline with 'evaluate baseline'"
        for name in measured
        if name not in metrics
    ]
    evidence = _of_scores(current, baseline, min_effect, limits, alpha)
    evidence += [_of_set(name, current, baseline, min_effect, limits, alpha) for name in judged]
    if not evidence:
        return Outcome(Verdict.INCOMPLETE, "nothing can be judged", n, alpha, (), tuple(notes))
    p_drop = holm(np.array([each.p_drop for each in evidence]))
    verdicts = decide(p_drop, np.array([each.p_hold for each in evidence]), alpha)
    findings = tuple(
        Finding(
            **{**vars(each), "p_drop": float(p)},
            verdict=Verdict(verdict),
            detectable=each.margin + each.error * (each.t(1 - alpha / len(evidence)) + each.t(POWER)),
        )
        for each, p, verdict in zip(evidence, p_drop, verdicts, strict=True)
    )
    verdict = overall([finding.verdict for finding in findings])
    decisive = [finding.metric for finding in findings if finding.verdict == verdict]
    return Outcome(verdict, f"{verdict}: {', '.join(decisive)}", n, alpha, findings, tuple(notes))


def _of_scores(
    current: Records, baseline: Records, min_effect: float, margins: Mapping[str, float], alpha: float
) -> list[Evidence]:
    metrics = list(baseline.meta["protocols"])
    if not metrics:
        return []
    old, new = (
        np.stack([baseline.values(name, side[name]) for name in metrics], 1)
        for side in (baseline.by_prompt(), current.by_prompt())
    )
    differences, means, n = new - old, old.mean(0), len(old)
    limits = np.array([margins.get(name, min_effect * abs(mean)) for name, mean in zip(metrics, means, strict=True)])
    # Enough that the smallest p-value there can be is far below what Holm asks of the first metric.
    resamples = max(RESAMPLES, math.ceil(100 * (len(metrics) + len(baseline.meta.get("distribution", {}))) / alpha))
    drawn = bootstrap_means(differences, resamples=resamples, seed=SEED)
    p_drop, p_hold = tail(drawn, limits, n)
    # Where nothing has changed on any prompt, no number of prompts is too small to say so.
    p_hold[(differences == 0).all(0)] = 0
    low, high = np.quantile(drawn, [shrink(alpha, n), 1 - shrink(alpha, n)], axis=0)
    changes, errors = differences.mean(0), stats.sem(differences, axis=0)
    return [
        Evidence(
            metric=name,
            baseline=float(means[i]),
            current=float(means[i] + changes[i]),
            difference=float(changes[i]),
            low=float(low[i]),
            high=float(high[i]),
            margin=float(limits[i]),
            p_drop=float(p_drop[i]),
            p_hold=float(p_hold[i]),
            error=float(errors[i]),
            freedom=n - 1,
            note=_note(name, baseline.scores(name), name in margins),
        )
        for i, name in enumerate(metrics)
    ]


def _of_set(
    name: str, current: Records, baseline: Records, min_effect: float, margins: Mapping[str, float], alpha: float
) -> Evidence:
    found = set_difference(baseline, current, name)
    margin = margins.get(name, min_effect * abs(found.a))
    gain = -found.difference if baseline.lower_is_better(name) else found.difference
    # A difference that no group of prompts moves is certain.
    t = (gain + margin) / found.error if found.error > 0 else math.copysign(math.inf, gain + margin)
    half = float(stats.t.ppf(1 - alpha, found.freedom)) * found.error
    return Evidence(
        metric=name,
        baseline=found.a,
        current=found.b,
        difference=found.difference,
        low=found.difference - half,
        high=found.difference + half,
        margin=margin,
        p_drop=float(stats.t.cdf(t, found.freedom)),
        p_hold=float(stats.t.sf(t, found.freedom)),
        error=found.error,
        freedom=found.freedom,
    )


def _note(name: str, scores: np.ndarray, has_margin: bool) -> str:
    if has_margin or scores.min() >= 0 or scores.max() <= 0:
        return ""
    return (
        f"{name} lies on both sides of zero, so a share of its mean is a poor margin; name one: --min-effect"
        f" {name}=0.05"
    )


def parse_min_effect(options: Sequence[str]) -> tuple[float, dict[str, float]]:
    """`--min-effect`, each a share (0.01) or METRIC=MARGIN (imagereward=0.05) -> (share, margins). Raises UserError."""
    share, margins = MIN_EFFECT, {}
    for option in options:
        name, equals, text = option.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (0 <= value < math.inf) or (equals and not name):
            raise UserError(
                f"--min-effect {option}: give a share of the baseline's mean (0.01), or METRIC=MARGIN, at least 0"
            )
        if name:
            margins[name] = value
        else:
            share = value
    return share, margins


def baseline_of(records: Records) -> Records:
    """What is kept of an accepted run: all but the prompts' sentences and what scorers say in words, which may not be
    ours to commit.
    """
    if records.missing:
        raise ValueError(f"an incomplete run makes no baseline: {records.missing}")
    words = [column for column in records.frame if column == "prompt" or column.startswith("details.")]
    return Records(records.frame.drop(columns=words), records.meta)


def baseline_path(records: Records) -> Path:
    """Where a run's baseline lies unless told otherwise: `leaderboards/baselines/SUITE-MODEL.parquet`."""
    name = f"{records.meta['suite']}-{records.meta['model']}"
    slug = "".join(c if c.isalnum() or c in "._" else "-" for c in name).strip("-.")[-100:]
    return Path("leaderboards") / "baselines" / f"{slug}.parquet"

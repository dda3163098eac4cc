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
a change for the better, or no change at all, can pass. Distribution metrics (Fréchet distances) have no score per
prompt and are not judged.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from scipy import stats

from evaluate.results.compare import mismatch
from evaluate.results.records import Records
from evaluate.results.stats import bootstrap_means, expand, holm, shrink
from prompts.io.errors import UserError
from prompts.io.files import replace

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


@dataclass(frozen=True)
class Finding:
    """One metric: means over prompts, their difference (current - baseline) with the two one-sided
    bounds at alpha, and the verdict.

    p_drop: of "it has not dropped by more than the margin", adjusted for all metrics. p_hold: of "it has dropped by
    more". detectable: the drop that this many prompts, this spread and this many metrics would show in POWER of runs.
    """

    metric: str
    verdict: Verdict
    baseline: float
    current: float
    difference: float
    low: float
    high: float
    margin: float
    p_drop: float
    p_hold: float
    detectable: float
    note: str


@dataclass(frozen=True)
class Outcome:
    """The verdict on a run, why, and what it rests on."""

    verdict: Verdict
    reason: str
    n: int
    alpha: float
    findings: tuple[Finding, ...]


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
    if lacking := [name for name in baseline.meta["protocols"] if name not in current.meta["protocols"]]:
        return f"the run has no {lacking[0]}, which the baseline has"
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

    min_effect: the margin as a share of the baseline's mean (of its size, whatever its sign). margins: absolute
    ones, in the metric's units, for the metrics named; what a metric whose scores lie on both sides of zero
    needs, since a share of its mean says little. Raises UserError for a margin of a metric that the baseline
    lacks, and for fewer than two prompts.
    """
    margin_of = margins or {}
    metrics = list(baseline.meta["protocols"])
    if unknown := [name for name in margin_of if name not in metrics]:
        raise UserError(
            f"--min-effect {unknown[0]}: the baseline has no such metric; it has {', '.join(metrics) or 'none'}"
        )
    if reason := unusable(current, baseline):
        return Outcome(Verdict.INCOMPLETE, reason, 0, alpha, ())
    before, after = baseline.by_prompt(), current.by_prompt()
    if (n := len(before)) < 2:
        raise UserError(f"{n} prompt is too few for the gate; run more of the suite")
    old, new = (np.stack([baseline.values(name, side[name]) for name in metrics], 1) for side in (before, after))
    differences, means = new - old, old.mean(0)
    limits = np.array([margin_of.get(name, min_effect * abs(mean)) for name, mean in zip(metrics, means, strict=True)])
    # Enough that the smallest p-value there can be is far below what Holm asks of the first metric.
    resamples = max(RESAMPLES, math.ceil(100 * len(metrics) / alpha))
    drawn = bootstrap_means(differences, resamples=resamples, seed=SEED)
    unadjusted, p_hold = tail(drawn, limits, n)
    p_drop = holm(unadjusted)
    # Where nothing has changed on any prompt, no number of prompts is too small to say so.
    p_hold[(differences == 0).all(0)] = 0
    ends = np.quantile(drawn, [shrink(alpha, n), 1 - shrink(alpha, n)], axis=0)
    detectable = limits + _detectable_beyond(differences, alpha)
    verdicts = decide(p_drop, p_hold, alpha)
    changes = differences.mean(0)
    findings = tuple(
        Finding(
            metric=name,
            verdict=Verdict(verdicts[i]),
            baseline=float(means[i]),
            current=float(means[i] + changes[i]),
            difference=float(changes[i]),
            low=float(ends[0, i]),
            high=float(ends[1, i]),
            margin=float(limits[i]),
            p_drop=float(p_drop[i]),
            p_hold=float(p_hold[i]),
            detectable=float(detectable[i]),
            note=_note(name, baseline.scores(name), name in margin_of),
        )
        for i, name in enumerate(metrics)
    )
    verdict = overall([finding.verdict for finding in findings])
    decisive = [finding.metric for finding in findings if finding.verdict == verdict]
    return Outcome(verdict, f"{verdict}: {', '.join(decisive)}", n, alpha, findings)


def _detectable_beyond(differences: np.ndarray, alpha: float) -> np.ndarray:
    """How far beyond its margin each metric's drop is found as often as POWER says, for differences `[N, M]`."""
    n, metrics = differences.shape
    # Of Student's t: what Holm's first step asks for, and a little more.
    quantiles = stats.t.ppf(1 - alpha / metrics, n - 1) + stats.t.ppf(POWER, n - 1)
    distance: np.ndarray = quantiles * stats.sem(differences, axis=0)
    return distance


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
    """What is kept of an accepted run: all but the prompts' sentences, which may not be ours to commit."""
    if records.missing:
        raise ValueError(f"an incomplete run makes no baseline: {records.missing}")
    return Records(records.frame.drop(columns="prompt", errors="ignore"), records.meta)


def baseline_path(records: Records) -> Path:
    """Where a run's baseline lies unless told otherwise: `leaderboards/baselines/SUITE-MODEL.parquet`."""
    name = f"{records.meta['suite']}-{records.meta['model']}"
    slug = "".join(c if c.isalnum() or c in "._" else "-" for c in name).strip("-.")[-100:]
    return Path("leaderboards") / "baselines" / f"{slug}.parquet"


# ---- what is said of it ----------------------------------------------------------------------------------------------


def exit_code(outcome: Outcome, inconclusive: Verdict) -> int:
    """inconclusive: what an inconclusive run counts as (pass, regressed, or itself)."""
    return EXIT_CODES[inconclusive if outcome.verdict == Verdict.INCONCLUSIVE else outcome.verdict]


def write_json(path: Path, outcome: Outcome, current: Records, baseline: Records, code: int) -> None:
    """Write all of it."""
    content: dict[str, Any] = {
        "verdict": outcome.verdict,
        "exit_code": code,
        "reason": outcome.reason,
        "suite": baseline.meta["suite"],
        "suite_sha256": baseline.meta["suite_sha256"],
        "current": current.meta["model"],
        "baseline": baseline.meta["model"],
        "prompts": outcome.n,
        "alpha": outcome.alpha,
        "metrics": [asdict(finding) for finding in outcome.findings],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    replace(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def write_junit(path: Path, outcome: Outcome, current: Records, code: int) -> None:
    """Write a JUnit test suite with one case per metric; inconclusive ones are skipped, or
    failures where they count as such.
    """
    cases = [(finding.metric, finding.verdict, tell(finding)) for finding in outcome.findings]
    cases = cases or [("records", outcome.verdict, outcome.reason)]
    tags = {
        Verdict.REGRESSED: "failure",
        Verdict.INCOMPLETE: "error",
        Verdict.INCONCLUSIVE: "failure" if code == 1 else "skipped",
    }
    tag_of_case = [tags.get(verdict) for _, verdict, _ in cases]
    counts = {
        f"{tag}s" if tag != "skipped" else tag: str(tag_of_case.count(tag)) for tag in ("failure", "error", "skipped")
    }
    suite = ElementTree.Element("testsuite", {"name": "evaluate check", "tests": str(len(cases)), **counts})
    for (name, _, message), tag in zip(cases, tag_of_case, strict=True):
        case = ElementTree.SubElement(suite, "testcase", classname=current.meta["suite"], name=name)
        if tag:
            ElementTree.SubElement(case, tag, message=message)
    replace(path, lambda draft: ElementTree.ElementTree(suite).write(draft, encoding="utf-8", xml_declaration=True))


def tell(finding: Finding) -> str:
    """One metric in a sentence."""
    return (
        f"{finding.verdict}: {finding.baseline:.4f} -> {finding.current:.4f}, difference {finding.difference:+.4f} "
        f"[{finding.low:+.4f}, {finding.high:+.4f}], margin {finding.margin:.4f}"
    )


def show(outcome: Outcome, current: Records, baseline: Records) -> None:
    """Print the table and the verdict."""
    from rich.markup import escape
    from rich.table import Table

    from evaluate.console import printer

    console = printer()
    if outcome.findings:
        table = Table(
            title=escape(
                f"{current.meta['model']} against {baseline.meta['model']} on {baseline.meta['suite']}, {outcome.n:,}"
                " prompts"
            ),
            caption=(
                f"difference with its one-sided bounds at {outcome.alpha:g}; p adjusted for {len(outcome.findings)}"
                " metrics (Holm)"
            ),
        )
        for column in ("metric", "baseline", "run", "difference", "margin", "p (drop)", "detectable", "verdict"):
            table.add_column(column, justify="left" if column in ("metric", "verdict") else "right")
        for f in outcome.findings:
            interval = f"{f.difference:+.4f} [{f.low:+.4f}, {f.high:+.4f}]"
            numbers = (
                f"{f.baseline:.4f}",
                f"{f.current:.4f}",
                interval,
                f"{f.margin:.4f}",
                f"{f.p_drop:.4f}",
                f"{f.detectable:.4f}",
            )
            table.add_row(f.metric, *numbers, f.verdict)
        console.print(table)
    for note in filter(None, (finding.note for finding in outcome.findings)):
        console.print(note)
    console.print(escape(outcome.reason))

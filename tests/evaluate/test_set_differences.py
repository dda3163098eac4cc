"""Distribution metrics of two runs: their difference, and what compare, rank and the gate make of it."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from recording import make
from scipy import stats
from torch import Tensor

from evaluate.distribution.frechet import Moments, frechet_distance
from evaluate.results import gate, rank, sets
from evaluate.results.compare import compare, mismatch
from evaluate.results.gate import Verdict
from evaluate.results.records import Records
from evaluate.stats import jackknife_error
from prompts.io.errors import UserError

ALPHA = 0.05
PROMPTS, WIDTH = 200, 3
METRIC = "fd-shapes"  # of which lower is better
IMAGES = make({"m": np.zeros(PROMPTS)}, protocols={})


def run_of(value: float, left_out: dict[str, tuple[int, float]], model: str = "a", **estimate: Any) -> Records:
    found = {"value": value, "low": math.nan, "high": math.nan, "n": PROMPTS, "note": "", "left_out": left_out}
    estimates = {METRIC: found | {"weights_sha256": "b" * 64} | estimate}
    return Records(IMAGES.frame, IMAGES.meta | {"model": model, "distribution": estimates})


def distances(features: Tensor) -> Tensor:
    """Fréchet distances `[B]` of features `[B, N, D]` to a standard normal distribution's moments."""
    mean, centred = features.mean(1), features - features.mean(1, keepdim=True)
    covariance = centred.mT @ centred / (features.shape[1] - 1)
    roots = torch.linalg.eigvalsh(covariance).clamp_min(0).sqrt().sum(-1)
    return mean.square().sum(-1) + covariance.diagonal(dim1=-2, dim2=-1).sum(-1) + WIDTH - 2 * roots


@functools.cache
def simulated(runs: int, groups: int, rise: float, seed: int) -> list[tuple[Records, Records]]:
    """Pairs of runs on the same prompts, the second one's distance greater by `rise`. Half of what an image shows comes
    from its prompt.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(runs, PROMPTS, WIDTH, generator=generator, dtype=torch.float64)

    prompt, start = normal(), 4.0
    sides = []
    for distance in (start, start + rise):
        features = prompt / 2**0.5 + normal() / 2**0.5
        features[..., 0] += distance**0.5
        whole = distances(features)
        without = torch.stack(
            [distances(features[:, torch.arange(PROMPTS) % groups != group]) for group in range(groups)], 1
        )
        sides.append((whole.tolist(), without.tolist()))
    size = PROMPTS // groups
    return [
        tuple(  # type: ignore[misc]
            run_of(whole[i], {f"{g}/{groups}": (size, value) for g, value in enumerate(without[i])})
            for whole, without in sides
        )
        for i in range(runs)
    ]


def verdicts(pairs: list[tuple[Records, Records]], margin: float) -> list[Verdict]:
    return [gate.check(after, before, margins={METRIC: margin}).verdict for before, after in pairs]


def test_the_distances_simulated_are_frechet_distances() -> None:
    features = torch.randn(1, 50, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    normal = Moments(2, torch.zeros(WIDTH, dtype=torch.float64), torch.eye(WIDTH, dtype=torch.float64))
    assert distances(features).item() == pytest.approx(frechet_distance(Moments.of(features[0]), normal))


# ---- how often the gate is wrong, and what it finds ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "margin"),
    [(10, 0.1), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((10, 0.0), (50, 0.1)))],
)
def test_false_alarms_are_as_rare_as_stated(groups: int, margin: float) -> None:
    """2,000 runs whose distance has risen by exactly the margin."""
    alarms = verdicts(simulated(2000, groups, margin, seed=groups), margin).count(Verdict.REGRESSED)
    assert stats.binomtest(alarms, 2000, alternative="greater").proportion_ci(0.95).low <= ALPHA
    assert alarms > 2000 * ALPHA / 2


@pytest.mark.slow
def test_a_rise_of_the_margin_passes_as_rarely_as_stated() -> None:
    passed = verdicts(simulated(2000, 10, 0.1, seed=10), 0.1).count(Verdict.PASS)
    assert stats.binomtest(passed, 2000, alternative="greater").proportion_ci(0.95).low <= ALPHA
    assert passed > 2000 * ALPHA / 2


@pytest.mark.parametrize("rise", [1.5, -1.5])
def test_a_planted_change_is_found_and_a_fall_is_none(rise: float) -> None:
    found = verdicts(simulated(200, 10, rise, seed=2), 0.02)
    assert found.count(Verdict.REGRESSED if rise > 0 else Verdict.PASS) >= 190


def test_the_detectable_rise_is_found_as_often_as_stated() -> None:
    drops = [gate.check(b, a, margins={METRIC: 0.02}).findings[0].detectable for a, b in simulated(50, 50, 0.0, seed=3)]
    found = verdicts(simulated(500, 50, float(np.mean(drops)), seed=4), 0.02).count(Verdict.REGRESSED)
    assert 0.9 < found / 500 < 0.99


# ---- its parts -------------------------------------------------------------------------------------------------------


def test_the_error_of_a_mean_is_its_standard_error() -> None:
    scores = np.random.default_rng(0).normal(size=30)
    without = (scores.sum() - scores) / 29
    assert jackknife_error(scores.mean(), without, np.ones(30)) == pytest.approx(stats.sem(scores))


def test_what_two_runs_share_cancels() -> None:
    (before, after), *_ = simulated(1, 10, 0.0, seed=5)
    ours, theirs = (
        jackknife_error(
            each.meta["distribution"][METRIC]["value"],
            np.array([value for _, value in sets.jackknife_groups(each, METRIC).values()]),
            np.full(10, PROMPTS / 10),
        )
        for each in (before, after)
    )
    found = sets.set_difference(before, after, METRIC)
    assert found.error < 0.9 * math.hypot(ours, theirs)
    assert (found.difference, found.freedom) == (pytest.approx(found.b - found.a), 9)


def test_runs_that_are_not_paired_say_why() -> None:
    groups = {"0/2": (100, 1.0), "1/2": (100, 1.1)}
    whole, old, other = run_of(1.0, groups), run_of(1.0, {}), run_of(1.0, {**groups, "0/2": (50, 1.0)})
    assert sets.unpaired(whole, whole, METRIC) is None
    assert "older version" in str(sets.unpaired(whole, old, METRIC))
    assert "same prompts" in str(sets.unpaired(whole, other, METRIC))
    assert "weights" in str(mismatch(whole, run_of(1.0, groups, weights_sha256="c" * 64)))
    one, another = (run_of(1.0, groups, reference_sha256=digit * 64) for digit in "de")
    assert mismatch(whole, one) is None, "where one does not say"
    assert "other reference images" in str(mismatch(one, another))
    with pytest.raises(UserError, match=r"no metric that can be ranked; fd-shapes: .* not of the same prompts"):
        rank.rank([whole, dataclasses.replace(other, meta=other.meta | {"model": "b"})])
    assert gate.check(old, whole).verdict == gate.check(other, whole).verdict == Verdict.INCOMPLETE
    scored = make({"m": np.zeros(PROMPTS)})
    both = dataclasses.replace(scored, meta=scored.meta | {"distribution": whole.meta["distribution"]})
    assert "the run has no fd-shapes" in gate.check(scored, both).reason


def test_a_baseline_without_groups_is_not_judged_and_it_is_said() -> None:
    scores = {"m": np.linspace(0, 1, PROMPTS)}
    old, new = (make(scores), make(scores))
    for records, left_out in ((old, {}), (new, {"0/2": (100, 1.0), "1/2": (100, 1.1)})):
        records.meta["distribution"] = run_of(1.0, left_out).meta["distribution"]
    outcome = gate.check(new, old)
    assert [finding.metric for finding in outcome.findings] == ["m"]
    assert outcome.verdict == Verdict.PASS
    assert "fd-shapes is not judged" in outcome.notes[0]


def test_where_nothing_can_be_judged_nothing_passes() -> None:
    outcome = gate.check(run_of(1.0, {}), run_of(1.0, {}))
    assert (outcome.verdict, outcome.findings) == (Verdict.INCOMPLETE, ())
    assert "fd-shapes is not judged" in outcome.notes[0]


def test_which_way_is_better_comes_with_the_records() -> None:
    """Whether or not the metric is an extension's that is not there when they are read."""
    (before, after), *_ = simulated(1, 10, 4.0, seed=6)
    assert gate.check(after, before).verdict == Verdict.REGRESSED
    for run in (before, after):
        run.meta["distribution"][METRIC]["lower_is_better"] = False
    assert gate.check(after, before).verdict == Verdict.PASS


def test_an_unchanged_distance_passes() -> None:
    (before, _), *_ = simulated(1, 10, 0.0, seed=6)
    assert gate.check(before, before, min_effect=0.0).verdict == Verdict.PASS


# ---- compare and rank ------------------------------------------------------------------------------------------------


def test_compare_gives_the_difference_its_interval() -> None:
    (before, after), *_ = simulated(1, 10, 1.0, seed=7)
    (row,) = compare(before, after)
    found = sets.set_difference(before, after, METRIC)
    half = stats.t.ppf(0.975, 9) * found.error
    assert (row.metric, row.n, row.a, row.b) == (METRIC, PROMPTS, found.a, found.b)
    assert (row.low, row.high) == (pytest.approx(found.difference - half), pytest.approx(found.difference + half))
    assert math.isnan(row.win_rate)


def test_of_unlike_numbers_of_images_there_is_no_difference() -> None:
    groups = {"0/2": (100, 1.0), "1/2": (100, 1.1)}
    (row,) = compare(run_of(1.0, groups), run_of(2.0, {}, n=3))
    assert (row.a, row.b) == (1.0, 2.0)
    assert math.isnan(row.difference)


def test_rank_gives_places_by_distance_the_lowest_first() -> None:
    (a, b), *_ = simulated(1, 10, 4.0, seed=8)
    runs = [
        dataclasses.replace(run, meta=run.meta | {"model": name})
        for run, name in ((b, "far"), (a, "near"), (a, "same"))
    ]
    found = rank.rank(runs).ranked
    assert [(row.model, row.first, row.last) for row in found] == [("near", 1, 2), ("same", 1, 2), ("far", 3, 3)]


def test_rank_errs_as_rarely_as_stated() -> None:
    """Of two models that are alike, none is ever first alone but for one time in twenty."""
    wrong = sum(rank.rank_sets(METRIC, pair)[0].last == 1 for pair in simulated(1000, 10, 0.0, seed=9))
    assert stats.binomtest(wrong, 1000, alternative="greater").proportion_ci(0.95).low <= 0.05
    assert wrong > 20

"""Several models in order: places, strengths, and metrics that agree."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recording
from scipy import stats

from evaluate import cli
from evaluate.results import rank
from evaluate.results.csv_io import read_csv
from evaluate.results.records import Records
from prompts.io.errors import UserError

MODELS = ["worst", "one", "two", "best"]


def drawn(rng: np.random.Generator, n: int, means: list[float]) -> np.ndarray:
    """Scores `[n, M]` that share what is hard about a prompt."""
    return np.array(means) + rng.normal(size=(n, 1)) + rng.normal(size=(n, len(means)))


def test_places_are_those_that_differences_leave() -> None:
    scores = drawn(np.random.default_rng(0), 400, [0.0, 1.0, 1.0, 2.0])
    rows = rank.rank_scores("hpsv2", MODELS, scores)
    assert [row.model for row in rows][::3] == ["best", "worst"]
    assert {row.model: (row.first, row.last) for row in rows} == {
        "best": (1, 1),
        "one": (2, 3),
        "two": (2, 3),
        "worst": (4, 4),
    }
    assert [row.mean for row in rows] == sorted(scores.mean(axis=0), reverse=True)
    few = rank.rank_scores("hpsv2", MODELS, scores[:1])
    assert {(row.first, row.last) for row in few} == {(1, 4)}, "one prompt tells nothing apart"
    assert all(math.isnan(row.strength) for row in few)


def test_places_are_wrong_as_seldom_as_they_say() -> None:
    """Of five equal models: whichever pair is told apart, it is an error."""
    rng = np.random.default_rng(1)
    wrong = np.mean([rank.significantly_ahead(drawn(rng, 60, [0.0] * 5)).any() for _ in range(1000)])
    assert wrong <= 1 - rank.LEVEL + 2 * math.sqrt(0.05 * 0.95 / 1000)
    assert wrong > 0.01, "the correction leaves some of what it may"


def test_equal_scores_are_a_tie_and_a_constant_difference_is_none() -> None:
    scores = np.arange(8.0)[:, None] + np.array([0.0, 0.0, 1.0])
    assert rank.significantly_ahead(scores).tolist() == [[False] * 3, [False] * 3, [True, True, False]]
    assert not rank.significantly_ahead(scores[:1]).any()


def test_strengths_are_those_that_the_shares_of_wins_have() -> None:
    truth = np.array([-0.9, -0.1, 0.2, 0.8])
    share = 1 / (1 + np.exp(truth[None, :] - truth[:, None]))
    assert rank.bradley_terry(share * 1e7) == pytest.approx(truth, abs=1e-5)
    (low, high) = rank.bradley_terry(np.array([[0.0, 10.0], [30.0, 0.0]]))
    assert high - low == pytest.approx(math.log(30.5 / 10.5))
    # One that always wins over two that are alike: its odds to each, by the condition that wins are those expected.
    won = np.array([[0.0, 1024.0, 1024.0], [0.0, 0.0, 512.0], [0.0, 512.0, 0.0]])
    first, second, third = rank.bradley_terry(won)
    assert second == pytest.approx(third)
    assert first - second == pytest.approx(math.log(1024.5 / 0.5), abs=1e-6)
    always = rank.bradley_terry(np.array([[0.0, 0.0], [40.0, 0.0]]))
    assert np.isfinite(always).all() and always[1] - always[0] == pytest.approx(math.log(40.5 / 0.5))


@pytest.mark.slow
def test_a_strengths_interval_contains_it_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "RESAMPLES", 400)
    rng, held, times = np.random.default_rng(2), 0, 200
    many = drawn(rng, 200_000, [0.0, 0.3, 0.8])
    truth = rank.bradley_terry((many[:, :, None] > many[:, None]).sum(axis=0))
    for seed in range(times):
        _, low, high = rank.strengths(drawn(rng, 80, [0.0, 0.3, 0.8]), seed=seed)
        held += int((low[2] <= truth[2]) & (truth[2] <= high[2]))
    assert abs(held / times - rank.LEVEL) <= 3 * math.sqrt(0.05 * 0.95 / times)


def runs_of(scores: dict[str, np.ndarray]) -> list[Records]:
    """A run of every model, by metric's scores `[N, M]`."""
    m = next(iter(scores.values())).shape[1]
    return [
        recording.make({name: values[:, i] for name, values in scores.items()}, model=f"model-{i}") for i in range(m)
    ]


@pytest.fixture
def three_metrics() -> list[Records]:
    """Two metrics that agree, and one whose order is the other way round."""
    rng = np.random.default_rng(3)
    means = [0.0, 1.0, 2.0, 3.0]
    return runs_of(
        {
            "hpsv2": drawn(rng, 100, means),
            "clipscore": drawn(rng, 100, means),
            "pickscore": drawn(rng, 100, means[::-1]),
        }
    )


def test_the_metric_that_disagrees_is_named(three_metrics: list[Records]) -> None:
    ranking = rank.rank(three_metrics)
    means = {
        name: [np.mean(run.frame[f"score.{name}"]) for run in three_metrics]
        for name in ("hpsv2", "clipscore", "pickscore")
    }
    for (one, other), tau in ranking.agreement.items():
        assert tau == pytest.approx(stats.kendalltau(means[one], means[other]).statistic)
    assert ranking.least_agreeing() == ("pickscore", pytest.approx(-1.0))
    assert rank.Ranking(ranking.ranked, {("hpsv2", "clipscore"): 0.5}).least_agreeing() is None


def test_a_metric_that_all_are_equal_by_is_not_the_one_that_disagrees(three_metrics: list[Records]) -> None:
    for run in three_metrics:
        run.frame["score.same"] = 1.0
        run.meta["protocols"]["same"] = None
    ranking = rank.rank(three_metrics)
    assert math.isnan(ranking.agreement["hpsv2", "same"])
    least = ranking.least_agreeing()
    assert least
    assert least[0] != "same"
    assert math.isfinite(least[1])


def test_prompts_without_a_score_are_left_out() -> None:
    runs = runs_of({"hpsv2": drawn(np.random.default_rng(4), 50, [0.0, 1.0])})
    runs[0].frame.loc[:4, "score.hpsv2"] = math.nan
    kept = np.stack([run.frame["score.hpsv2"].to_numpy(float)[5:] for run in runs], axis=1)
    rows = rank.rank(runs).ranked
    assert {row.n for row in rows} == {45}
    assert rows == rank.rank_scores("hpsv2", ["model-0", "model-1"], kept)


def test_the_command_prints_and_writes(
    three_metrics: list[Records],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = [tmp_path / f"{i}.parquet" for i in range(4)]
    for run, path in zip(three_metrics, paths, strict=True):
        run.save(path)

    def command(*more: Any) -> int:
        monkeypatch.setattr("sys.argv", ["evaluate", "rank", *map(str, (*paths, *more))])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)

    assert command("--output", tmp_path / "rank.csv") == command("--output", tmp_path / "rank.json") == 0
    out = capsys.readouterr().out
    assert "model-3" in out and "pickscore orders the models least as the other metrics do" in " ".join(out.split())
    rows = read_csv(tmp_path / "rank.csv")
    assert len(rows) == 12 and [row["model"] for row in rows[:4]] == [f"model-{i}" for i in (3, 2, 1, 0)]
    content = json.loads((tmp_path / "rank.json").read_text())
    assert content["rows"][0]["first"] == 1 and len(content["agreement"]) == 3
    assert command("--output", tmp_path / "rank.txt") == 2
    assert "unknown ending '.txt'" in capsys.readouterr().err


def test_what_cannot_be_ranked_is_refused() -> None:
    runs = runs_of({"hpsv2": np.zeros((4, 2))})
    with pytest.raises(UserError, match="one run has nobody to be ranked among"):
        rank.rank(runs[:1])
    with pytest.raises(UserError, match="two runs are both called model-0"):
        rank.rank([runs[0], runs[0]])
    runs[1].meta["suite_sha256"] = "other"
    with pytest.raises(UserError, match="model-0 and model-1: suite_sha256 is"):
        rank.rank(runs)

"""The gate: how often it is wrong, what it finds, and what it answers."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from recording import make, score_pairs
from scipy import stats

from evaluate import cli
from evaluate.results import gate
from evaluate.results.gate import Verdict, decide, overall, tail
from evaluate.results.records import Records
from evaluate.stats import bootstrap_means, clustered_mean, expand, holm, shrink
from prompts.io.errors import UserError

PARTI = 1632
ALPHA = 0.05
METRICS = 5


def verdicts(differences: np.ndarray, margins: np.ndarray, *, metrics: int, resamples: int = 2000) -> np.ndarray:
    """What the gate says of many runs at once: differences `[n, runs * metrics]` -> `[runs, metrics]`."""
    drawn = bootstrap_means(differences, resamples=resamples, seed=gate.SEED)
    p_drop, p_hold = (p.reshape(-1, metrics) for p in tail(drawn, margins, len(differences)))
    return decide(holm(p_drop), p_hold, ALPHA)


def at_most(count: int, runs: int, level: float) -> bool:
    """Whether the lower 95 % bound of a rate is at or under `level`."""
    return bool(stats.binomtest(count, runs, alternative="greater").proportion_ci(0.95).low <= level)


# ---- how often it is wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [PARTI, 40])
@pytest.mark.parametrize("margin", [0.0, pytest.param(0.28, marks=pytest.mark.slow)])
def test_false_alarms_are_as_rare_as_stated(n: int, margin: float) -> None:
    """2,000 runs that have dropped by no more than the margin, in the least favourable case
    by exactly that, on all metrics.
    """
    rng, alarms = np.random.default_rng(n), 0
    for _ in range(4):
        before, after = score_pairs(rng, n, 500 * METRICS, drop=margin)
        found = verdicts(after - before, np.full(500 * METRICS, margin), metrics=METRICS)
        alarms += int((found == Verdict.REGRESSED).any(1).sum())
    assert at_most(alarms, 2000, ALPHA)
    assert alarms > 2000 * ALPHA / 2  # as rare as stated, not blind


def test_without_a_change_the_default_margin_raises_no_alarm() -> None:
    before, after = score_pairs(np.random.default_rng(1), PARTI, 2000)
    found = verdicts(after - before, gate.MIN_EFFECT * before.mean(0), metrics=1)
    assert (found == Verdict.PASS).mean() > 0.99
    assert not (found == Verdict.REGRESSED).any()


def test_a_drop_of_the_margin_passes_as_rarely_as_stated() -> None:
    before, after = score_pairs(np.random.default_rng(2), 200, 2000, drop=0.28)
    passed = int((verdicts(after - before, np.full(2000, 0.28), metrics=1) == Verdict.PASS).sum())
    assert at_most(passed, 2000, ALPHA)
    assert passed > 2000 * ALPHA / 2


def test_skewed_scores_keep_to_the_level() -> None:
    rng = np.random.default_rng(3)
    differences = rng.exponential(size=(PARTI, 2000)) - 1
    alarms = int((verdicts(differences, np.zeros(2000), metrics=1) == Verdict.REGRESSED).sum())
    assert at_most(alarms, 2000, ALPHA)


# ---- what it finds ---------------------------------------------------------------------------------------------------


def test_a_drop_of_two_percent_is_found() -> None:
    """On one metric of five, the others unchanged, with HPSv2's spread between two checkpoints."""
    rng = np.random.default_rng(4)
    before, after = score_pairs(rng, PARTI, 100 * METRICS)
    after = after.reshape(PARTI, 100, METRICS)
    after[:, :, 2] -= 0.02 * 28
    margins = gate.MIN_EFFECT * before.mean(0)
    found = verdicts(after.reshape(PARTI, -1) - before, margins, metrics=METRICS)
    assert (found[:, 2] == Verdict.REGRESSED).sum() >= 95
    assert sum(overall(list(row)) == Verdict.REGRESSED for row in found) >= 95


def test_where_scores_spread_too_widely_it_says_that_it_cannot_tell() -> None:
    before, after = score_pairs(np.random.default_rng(5), PARTI, 100, drop=0.56, sd=8.0)
    found = verdicts(after - before, np.full(100, 0.28), metrics=1)
    assert (found == Verdict.INCONCLUSIVE).sum() >= 40
    assert (found == Verdict.PASS).sum() <= 1
    outcome = gate.check(make({"m": after[:, 0]}), make({"m": before[:, 0]}))
    assert outcome.findings[0].detectable > 0.56


def test_the_detectable_drop_is_found_as_often_as_stated() -> None:
    before, after = score_pairs(np.random.default_rng(6), 400, 1)
    (finding,) = gate.check(make({"m": after[:, 0]}), make({"m": before[:, 0]})).findings
    before, after = score_pairs(np.random.default_rng(7), 400, 1000, drop=finding.detectable)
    found = (verdicts(after - before, np.full(1000, finding.margin), metrics=1) == Verdict.REGRESSED).mean()
    assert 0.92 < found < 0.98


# ---- its parts -------------------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    p = np.array([[0.01, 0.04, 0.03, 0.005], [0.9, 0.8, 0.5, 0.6]])
    assert holm(p) == pytest.approx(np.array([[0.03, 0.06, 0.06, 0.02], [1, 1, 1, 1]]))


def test_bootstrap_means_are_those_of_drawn_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
    means = bootstrap_means(rows, resamples=20_000, seed=1)
    assert means.mean(0) == pytest.approx(rows.mean(0), abs=0.01)
    # The covariance of a mean of rows drawn with replacement, which divides by N and not by N - 1.
    assert np.cov(means.T) == pytest.approx(np.cov(rows.T, ddof=0) / 30, rel=0.05, abs=1e-3)
    assert (bootstrap_means(rows, resamples=10, seed=1) == bootstrap_means(rows, resamples=10, seed=1)).all()


@pytest.mark.parametrize("n", [2, 5, 1632])
def test_expanding_undoes_shrinking(n: int) -> None:
    assert expand(np.array(shrink(0.05, n)), n) == pytest.approx(0.05)
    assert shrink(0.05, n) < 0.05


def test_the_clustered_error_lets_images_of_a_prompt_depend_on_each_other() -> None:
    rng = np.random.default_rng(8)
    scores = rng.normal(size=200)
    ids = np.array([f"{i}" for i in range(200)])
    assert clustered_mean(scores, ids) == pytest.approx((scores.mean(), stats.sem(scores), 200))
    # Every image three times over: three times the images, and the same error.
    assert clustered_mean(scores.repeat(3), ids.repeat(3)).error == pytest.approx(stats.sem(scores))
    gaps = np.append(scores, [np.nan, np.nan])
    assert clustered_mean(gaps, np.append(ids, ["a", "b"])) == clustered_mean(scores, ids)
    assert clustered_mean(gaps[-2:], ids[:2]).n == 0
    assert np.isnan(clustered_mean(scores[:3], ids[[0, 0, 0]]).error)


def test_min_effects() -> None:
    assert gate.parse_min_effect(()) == (gate.MIN_EFFECT, {})
    assert gate.parse_min_effect(("0.02", "clipscore/vit-g-14-dmd2=0.05")) == (0.02, {"clipscore/vit-g-14-dmd2": 0.05})
    for wrong in ("", "x", "=1", "m=", "m=x", "-0.1", "m=-1", "nan", "inf"):
        with pytest.raises(UserError, match="METRIC=MARGIN"):
            gate.parse_min_effect((wrong,))


def test_the_margin_has_the_size_of_the_mean_and_a_sign_that_changes_is_told() -> None:
    rng = np.random.default_rng(9)
    scores = {"low": rng.normal(-20, 1, 50), "both": rng.normal(0.1, 1, 50), "fixed": rng.normal(0.1, 1, 50)}
    findings = gate.check(make(scores), make(scores), margins={"fixed": 0.05}).findings
    assert findings[0].margin == pytest.approx(-0.01 * scores["low"].mean())
    assert [finding.margin for finding in findings[1:]] == [pytest.approx(0.01 * abs(scores["both"].mean())), 0.05]
    assert [bool(finding.note) for finding in findings] == [False, True, False]
    with pytest.raises(UserError, match="no such metric"):
        gate.check(make(scores), make(scores), margins={"lo": 0.05})


# ---- what it answers -------------------------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command and return its exit code and what it wrote."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        written = capsys.readouterr()
        return int(stop.value.code or 0), written.out + written.err

    return call


@pytest.fixture
def known(tmp_path: Path, evaluate: Run) -> Path:
    """An accepted baseline of two metrics, 300 prompts with two images each."""
    rng = np.random.default_rng(10)
    make(scores(rng), seeds=2).save(tmp_path / "run" / "records.parquet")
    path = tmp_path / "baselines" / "b.parquet"
    assert evaluate("baseline", tmp_path / "run", "--accept", "--output", path)[0] == 0
    return path


def scores(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"hpsv2.1/aa": rng.normal(28, 2, 600), "imagereward": rng.normal(0.3, 1, 600)}


def changed(known: Path, path: Path, change: Callable[[Records], Any]) -> Path:
    records = Records.load(known)
    frame = change(records)
    Records(records.frame if frame is None else frame, records.meta).save(path)
    return path


def drop(records: Records, amount: float, spread: float = 0.0) -> None:
    records.frame["score.hpsv2.1/aa"] -= amount + np.random.default_rng(11).normal(
        0, spread or 1e-3, len(records.frame)
    )


def test_a_baseline_is_accepted_without_its_sentences(known: Path, tmp_path: Path, evaluate: Run) -> None:
    assert "prompt" not in Records.load(known).frame
    spoken = make({"judge": np.zeros(4)})
    spoken.frame["details.judge"] = "an answer"
    assert [column for column in gate.baseline_of(spoken).frame if column.startswith("details.")] == []
    code, said = evaluate("baseline", known, "--output", tmp_path / "other.parquet")
    assert (code, (tmp_path / "other.parquet").exists()) == (0, False)
    assert "--accept" in said
    assert gate.baseline_path(make({"m": np.zeros(2)}, model="../../=x y")).parent == Path("leaderboards/baselines")


def test_an_identical_run_under_another_name_passes(known: Path, tmp_path: Path, evaluate: Run) -> None:
    def relabel(records: Records) -> Any:
        records.meta["model"] = "another"
        return records.frame.sample(frac=1, random_state=0)

    path = changed(known, tmp_path / "same.parquet", relabel)
    for options in ((), ("--min-effect", "0"), ("--alpha", "0.001")):
        assert evaluate("check", path, "--baseline", known, *options)[0] == 0
    two = make({"m": np.array([-1.0, 1.0])})
    assert gate.check(two, two).verdict == Verdict.PASS


def test_exit_codes_and_files(known: Path, tmp_path: Path, evaluate: Run) -> None:
    regressed = changed(known, tmp_path / "regressed.parquet", lambda records: drop(records, 0.56))
    wide = changed(known, tmp_path / "wide.parquet", lambda records: drop(records, 0.28, spread=10))
    json_file, junit = tmp_path / "ci" / "r.json", tmp_path / "ci" / "r.xml"
    files = ("--json", json_file, "--junit", junit)
    for path, options, code, verdict, tag in (
        (regressed, (), 1, "regressed", "failure"),
        (regressed, ("--min-effect", "0.03"), 0, "pass", None),
        (regressed, ("--min-effect", "hpsv2.1/aa=0.6"), 0, "pass", None),
        (wide, (), 3, "inconclusive", "skipped"),
        (wide, ("--inconclusive", "pass"), 0, "inconclusive", "skipped"),
        (wide, ("--inconclusive", "fail"), 1, "inconclusive", "failure"),
    ):
        found, said = evaluate("check", path, "--baseline", known, *options, *files)
        assert found == code, said
        result = json.loads(json_file.read_text())
        assert (result["verdict"], result["exit_code"], result["prompts"]) == (verdict, code, 300)
        assert [row["metric"] for row in result["metrics"]] == ["hpsv2.1/aa", "imagereward"]
        assert result["metrics"][0]["verdict"] == verdict
        suite = ElementTree.parse(junit).getroot()
        assert [case.get("name") for case in suite] == ["hpsv2.1/aa", "imagereward"]
        assert [child.tag for child in suite[0]] == ([tag] if tag else [])
        counts = {"failure": suite.get("failures"), "skipped": suite.get("skipped"), "error": suite.get("errors")}
        assert counts == {name: str(int(name == tag)) for name in counts}


@pytest.mark.parametrize(("options", "tag"), [((), "skipped"), (("--inconclusive", "fail"), "failure")])
def test_each_metric_has_a_case_of_its_own(
    known: Path, tmp_path: Path, evaluate: Run, options: tuple[str, ...], tag: str
) -> None:
    def one_fell_one_cannot_be_told(records: Records) -> None:
        drop(records, 0.56)
        records.frame["score.imagereward"] -= np.random.default_rng(12).normal(0, 2, 600)

    path, junit = changed(known, tmp_path / "run.parquet", one_fell_one_cannot_be_told), tmp_path / "r.xml"
    code, _ = evaluate("check", path, "--baseline", known, "--junit", junit, *options)
    assert code == 1
    suite = ElementTree.parse(junit).getroot()
    assert [[child.tag for child in case] for case in suite] == [["failure"], [tag]]


def test_what_the_baseline_lacks_is_said_not_to_be_judged(known: Path, tmp_path: Path, evaluate: Run) -> None:
    def with_another(records: Records) -> None:
        records.meta["protocols"]["pickscore"] = "a" * 64
        records.frame["score.pickscore"] = -1000.0

    path, junit = changed(known, tmp_path / "run.parquet", with_another), tmp_path / "r.xml"
    code, said = evaluate("check", path, "--baseline", known, "--junit", junit)
    assert code == 0
    assert "pickscore is not judged: the baseline has none; accept the run" in " ".join(said.split())
    suite = ElementTree.parse(junit).getroot()
    assert [(case.get("name"), [child.tag for child in case]) for case in suite][2] == ("pickscore", ["skipped"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.frame.iloc[:-1], "599 of 600 records"),
        (lambda r: r.frame.__setitem__("score.imagereward", [np.nan] + [0.0] * 599), "no score imagereward"),
        (lambda r: r.frame.__setitem__("error", ["torn"] + [None] * 599), "1 of 600 records have errors"),
        (lambda r: r.meta.update(complete=False), "did not finish"),
        (lambda r: r.meta["protocols"].update({"imagereward": "b" * 64}), "imagereward was computed with weights"),
        (lambda r: r.meta.update(suite_sha256="6" * 64), "suite_sha256"),
        (lambda r: r.meta["protocols"].pop("imagereward") and None, "the run has no imagereward"),
        (lambda r: r.frame.assign(seed=r.frame["seed"] + 1), "300 of the baseline's 600 images"),
        (lambda r: r.meta.update(n_expected=300) or r.frame.iloc[:300], "300 of the baseline's 600 images"),
    ],
)
def test_what_is_incomplete_or_not_comparable_is_never_judged(
    known: Path, tmp_path: Path, evaluate: Run, change: Callable[[Records], Any], words: str
) -> None:
    path = changed(known, tmp_path / "run.parquet", change)
    json_file, junit = tmp_path / "r.json", tmp_path / "r.xml"
    code, said = evaluate(
        "check", path, "--baseline", known, "--json", json_file, "--junit", junit, "--inconclusive", "pass"
    )
    assert code == 4
    assert words in " ".join(said.split())
    assert json.loads(json_file.read_text())["verdict"] == "incomplete"
    assert ElementTree.parse(junit).find("testcase/error") is not None


def test_an_incomplete_run_makes_no_baseline(known: Path, tmp_path: Path, evaluate: Run) -> None:
    path = changed(known, tmp_path / "run.parquet", lambda records: records.frame.iloc[:-1])
    code, said = evaluate("baseline", path, "--accept", "--output", tmp_path / "new.parquet")
    assert code == 4
    assert "599 of 600" in said
    assert not (tmp_path / "new.parquet").exists()


@pytest.mark.parametrize(
    "options", [("--baseline", "/no/such.parquet"), ("--min-effect", "x"), ("--alpha", "2"),
    ("--inconclusive", "maybe"), ("--nonsense",)]
)  # fmt: skip
def test_wrong_usage(known: Path, evaluate: Run, options: tuple[str, ...]) -> None:
    baseline = () if "--baseline" in options else ("--baseline", known)
    assert evaluate("check", known, *baseline, *options)[0] == 2

"""Scorers with several columns and details, and those whose score is a mean of groups' means: from `evaluate run` to
every command that reads its records.
"""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from evaluate import cli, scorers
from evaluate.results.csv_io import read_csv
from evaluate.results.records import Records
from evaluate.runs import score
from evaluate.runs.store import file_name
from evaluate.stats import clustered_mean, macro_values
from prompts import suites

SCORERS = '''
"""How light an image is, said twice, and as a mean of tasks."""

import torch

from evaluate.preprocess import AsTheyAre
from evaluate.scorers import Assessment, Scorer

VARIANTS = {"fake/pair": "two columns and a reason", "fake/task": "a mean of tasks' means"}
CALLS = []


def lightness(images):
    return torch.stack([image.float().mean() / 255 for image in images])


class Pair(Scorer):
    """Lightness, and lightness per object."""

    needs = ("objects",)

    def __init__(self, name):
        super().__init__(name, AsTheyAre())
        self.columns = ("fake/sum", "fake/share")

    def assess(self, prepared, prompts, meta):
        """A reason where it is light."""
        CALLS.append(list(prompts))
        light, count = lightness(prepared), torch.tensor([len(each["objects"]) for each in meta])
        details = [
            {"reason": f"light, with {', '.join(each['objects'])}", "count": len(each["objects"])} if bright else None
            for bright, each in zip(light > 0.5, meta)
        ]
        return Assessment({"fake/sum": light + count, "fake/share": light / count}, details)


class Task(Scorer):
    """Lightness."""

    macro = {"fake/task": "task"}

    def assess(self, prepared, prompts, meta):
        """Nothing else to say."""
        return Assessment({self.protocol: lightness(prepared)})


def load(name, files):
    """There are no weights."""
    return (Pair if name == "fake/pair" else Task)(name, *([] if name == "fake/pair" else [AsTheyAre()]))
'''
#: By task, how many prompts: no two alike.
TASKS = {"one": 3, "two": 5, "colour": 10}
COLUMNS = ("fake/sum", "fake/share", "fake/task")
SEEDS = 2


def run_command(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "300"})
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


class Made(NamedTuple):
    """A suite's file, and of two models the images and, of each row, how light it is."""

    suite: Path
    images: dict[str, Path]
    light: dict[str, np.ndarray]
    frame: pd.DataFrame

    def run(self, model: str, output: Path, *metrics: str) -> Path:
        named = [word for metric in metrics or ("fake/pair", "fake/task") for word in ("--metric", metric)]
        where = ("--images", self.images[model], "--output", output, "--per-prompt", SEEDS, "--batch", 5)
        run_command("run", "--suite", self.suite, "--model", model, *where, *named, "--device", "cpu")
        (found,) = (output / "runs").glob(f"*{model}*")
        return found

    def task_mean(self, model: str) -> float:
        """By hand: of each task's images, then of the tasks."""
        tasks = self.frame["task"].repeat(SEEDS).to_numpy()
        return float(np.mean([self.light[model][tasks == task].mean() for task in TASKS]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("columns")
    (folder / "extension").mkdir()
    (folder / "extension" / "fake.py").write_text(SCORERS, encoding="utf-8")
    rows = [
        {"prompt": f"{task} number {i}", "task": task, "objects": ["cat", "dog", "cup"][: 1 + i % 3]}
        for task, n in TASKS.items()
        for i in range(n)
    ]
    file = folder / "prompts.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    ids = [prompt.id for prompt in suites.load(str(file)).prompts]
    images, light = {}, {}
    for model, shift in (("dim", 0), ("lit", 40)):
        values = np.random.default_rng(1).integers(20, 200, len(rows) * SEEDS) + shift
        values += np.random.default_rng(shift).integers(-20, 16, len(values))
        images[model], light[model] = folder / model, values / 255
        for i, value in enumerate(values):
            path = folder / model / f"{file_name(f'{ids[i // SEEDS]}-{i % SEEDS}')}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (int(value),) * 3).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorers, "__path__", [*scorers.__path__, str(folder / "extension")])
        importlib.invalidate_caches()
        yield Made(file, images, light, pd.DataFrame(rows).assign(count=lambda frame: frame["objects"].map(len)))
        del sys.modules["evaluate.scorers.fake"], scorers.fake  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def runs(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {model: made.run(model, tmp_path_factory.mktemp(model)) for model in made.images}


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_every_column_is_a_protocol_of_its_own(made: Made, runs: dict[str, Path]) -> None:
    records, count = Records.load(runs["dim"]), made.frame["count"].repeat(SEEDS).to_numpy()
    assert tuple(records.meta["protocols"]) == COLUMNS and records.complete
    light = made.light["dim"]
    for column, expected in zip(COLUMNS, (light + count, light / count, light), strict=True):
        np.testing.assert_allclose(records.scores(column), expected, atol=1e-6)


def test_details_are_kept_per_image(made: Made, runs: dict[str, Path]) -> None:
    frame = Records.load(runs["lit"]).frame
    kept = [json.loads(each) if isinstance(each, str) else None for each in frame["details.fake/pair"]]
    objects = made.frame["objects"].repeat(SEEDS)
    expected = [
        {"reason": f"light, with {', '.join(each)}", "count": len(each)} if light > 0.5 else None
        for light, each in zip(made.light["lit"], objects, strict=True)
    ]
    assert kept == expected and None in kept and kept.count(None) < len(kept)
    assert "details.fake/task" not in frame or frame["details.fake/task"].isna().all()


def test_prompts_that_do_not_say_what_is_needed_are_refused(made: Made, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a cat\na dog\n")
    where = ("--model", "dim", "--images", made.images["dim"], "--output", tmp_path / "out")
    options = ["run", "--suite", tmp_path / "texts.txt", *where, "--metric", "fake/pair"]
    done = CliRunner().invoke(cli.app, [str(option) for option in options])
    assert done.exit_code == 1 and not (tmp_path / "out" / "runs").exists()
    assert "fake/pair needs to know 'objects' of every prompt, which prompt 1 does not say" in str(done.exception)


# ---- what reads it ---------------------------------------------------------------------------------------------------


def test_the_leaderboard_and_the_summary_have_every_column(made: Made, runs: dict[str, Path], tmp_path: Path) -> None:
    (row,) = read_csv(runs["dim"].parents[1] / "prompts.csv")
    records = Records.load(runs["dim"])
    run_command("summary", runs["dim"], "--by", "task", "--output", tmp_path / "summary.csv")
    summary = {(each["metric"], each["group"]): each for each in read_csv(tmp_path / "summary.csv")}
    for column in COLUMNS:
        mean, error, n = records.mean(column)
        assert float(row[column]) == pytest.approx(mean) and int(row[f"{column} n"]) == n == len(records.frame)
        assert float(row[f"{column} se"]) == pytest.approx(error) and error > 0
        assert float(summary[column, ""]["mean"]) == pytest.approx(mean)
        assert float(summary[column, ""]["error"]) == pytest.approx(error)
    of_tasks = [float(summary["fake/task", task]["mean"]) for task in TASKS]
    assert float(row["fake/task"]) == pytest.approx(np.mean(of_tasks)) == pytest.approx(made.task_mean("dim"))
    assert float(row["fake/task"]) != pytest.approx(made.light["dim"].mean(), rel=1e-3)
    assert float(row["fake/sum"]) == pytest.approx(records.scores("fake/sum").mean())


def test_differences_are_those_of_the_means(made: Made, runs: dict[str, Path], tmp_path: Path) -> None:
    """In compare and in the gate, whose interval holds it; the leaders of rank have the means."""
    dim, lit = (Records.load(runs[model]) for model in ("dim", "lit"))
    run_command("compare", runs["dim"], runs["lit"], "--by", "task", "--output", tmp_path / "compare.json")
    rows = json.loads((tmp_path / "compare.json").read_text())["rows"]
    compared = {(each["metric"], each["group"]): each for each in rows}
    run_command("baseline", runs["dim"], "--accept", "--output", tmp_path / "dim.parquet")
    run_command("check", runs["lit"], "--baseline", tmp_path / "dim.parquet", "--json", tmp_path / "check.json")
    findings = {each["metric"]: each for each in json.loads((tmp_path / "check.json").read_text())["metrics"]}
    run_command("rank", runs["dim"], runs["lit"], "--output", tmp_path / "rank.csv")
    ranked = {(each["metric"], each["model"]): float(each["mean"]) for each in read_csv(tmp_path / "rank.csv")}
    assert {metric for metric, group in compared if not group} == findings.keys() == set(COLUMNS)
    for column in COLUMNS:
        before, after = dim.mean(column).mean, lit.mean(column).mean
        for found in (compared[column, ""], findings[column]):
            assert found["difference"] == pytest.approx(after - before) and found["low"] < after - before
        assert [ranked[column, model] for model in ("dim", "lit")] == pytest.approx([before, after])
    assert findings["fake/task"]["difference"] == pytest.approx(made.task_mean("lit") - made.task_mean("dim"))
    of_tasks = [compared["fake/task", task]["difference"] for task in TASKS]
    assert findings["fake/task"]["difference"] == pytest.approx(np.mean(of_tasks))


def test_a_drop_in_a_mean_of_tasks_is_found_by_the_gate(runs: dict[str, Path], tmp_path: Path) -> None:
    run_command("baseline", runs["lit"], "--accept", "--output", tmp_path / "lit.parquet")
    said = run_command("check", runs["dim"], "--baseline", tmp_path / "lit.parquet", code=1)
    assert "regressed" in said and "fake/task" in said


def test_runs_that_are_averaged_otherwise_are_not_compared(runs: dict[str, Path]) -> None:
    from evaluate.results.compare import mismatch

    dim, lit = (Records.load(runs[model]) for model in ("dim", "lit"))
    assert mismatch(dim, lit) is None
    plain = Records(lit.frame, {**lit.meta, "macro": {}})
    assert "fake/task is averaged over images in one" in str(mismatch(dim, plain))


def test_the_report_shows_the_reason_beside_the_image(made: Made, runs: dict[str, Path], tmp_path: Path) -> None:
    run_command("report", runs["dim"], runs["lit"], "--output", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])["measured"]
    assert [metric["name"] for metric in data["metrics"]] == list(COLUMNS)
    objects = made.frame["objects"].repeat(SEEDS).tolist()
    for m, model in enumerate(("dim", "lit")):
        light = made.light[model] > 0.5
        expected = {str(i): f"fake/pair: light, with {', '.join(objects[i])}" for i in np.flatnonzero(light)}
        assert data["reasons"][m] == expected


# ---- a run that stopped, and an old one ------------------------------------------------------------------------------


def calls() -> list[list[str]]:
    found: list[list[str]] = sys.modules["evaluate.scorers.fake"].CALLS  # type: ignore[attr-defined]
    return found


def test_an_interrupted_run_keeps_its_details(
    made: Made, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = score.Scores.write, []

    def interrupted(self: score.Scores, block: Any, rows: Any) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(block.key)
        write(self, block, rows)

    monkeypatch.setattr(score.Scores, "write", interrupted)
    with pytest.raises((KeyboardInterrupt, AssertionError)):
        made.run("lit", tmp_path, "fake/pair")
    monkeypatch.setattr(score.Scores, "write", write)
    calls().clear()
    again = Records.load(made.run("lit", tmp_path, "fake/pair"))
    assert sum(map(len, calls())) == len(again.frame) - 5 * 5
    whole = Records.load(runs["lit"]).frame
    pd.testing.assert_frame_equal(again.frame, whole[list(again.frame)], check_exact=True)


def test_scores_of_an_older_kind_are_given_again(made: Made, runs: dict[str, Path], tmp_path: Path) -> None:
    first = made.run("dim", tmp_path, "fake/task")
    files = sorted((first / "scores").rglob("*.json"))
    assert len(files) == -(-len(made.frame) * SEEDS // 5)
    for file in files:
        rows = json.loads(file.read_text())
        old = [{"image_sha256": row["image_sha256"], "score": 9.0, "error": None} for row in rows]
        file.write_text(json.dumps(old))
    again = Records.load(made.run("dim", tmp_path, "fake/task"))
    np.testing.assert_array_equal(again.scores("fake/task"), Records.load(runs["dim"]).scores("fake/task"))


# ---- the error of a mean of means ------------------------------------------------------------------------------------


def test_the_error_is_what_the_mean_of_means_varies_by() -> None:
    """2,000 draws of prompts in groups of 25, 50 and 125, spread otherwise in each, with three images that share what
    their prompt gave them.
    """
    rng, sizes, spreads = np.random.default_rng(0), (25, 50, 125), (3.0, 1.0, 0.5)
    groups = np.repeat(["a", "b", "c"], sizes).repeat(3)
    prompts = np.arange(sum(sizes)).repeat(3)
    spread, centre = (np.repeat(each, sizes).repeat(3) for each in (spreads, (1.0, 2.0, 6.0)))
    found = []
    for _ in range(2000):
        own, shared = rng.standard_normal(len(groups)), rng.standard_normal(sum(sizes)).repeat(3)
        scores = centre + spread * (shared + 0.5 * own)
        mean, error, _ = clustered_mean(macro_values(scores, groups), prompts)
        assert mean == pytest.approx(np.mean([scores[groups == name].mean() for name in "abc"]))
        found.append((mean, error))
    means, errors = np.array(found).T
    assert means.mean() == pytest.approx(3.0, abs=0.03)
    assert errors.mean() == pytest.approx(means.std(ddof=1), rel=0.05)


def test_missing_scores_count_in_no_group() -> None:
    scores, groups = np.array([1.0, np.nan, 3.0, 8.0, np.nan]), np.array(["a", "a", "a", "b", "c"])
    values = macro_values(scores, groups)
    assert np.isnan(values[[1, 4]]).all()
    assert np.nanmean(values) == pytest.approx((2 + 8) / 2)

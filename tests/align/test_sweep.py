"""Sweeps: what is refused before anything runs, what is resumed, and whether a table says what is in the figures."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny import SMALL_RUN

from align.ablation import claims, sweep, table
from align.ablation.config import SWEEP, SweepConfig
from align.ablation.measure import still_known
from align.ablation.plot import INK
from align.presets.load import presets, resolve
from evaluate import embedded
from evaluate.results.csv_io import read_csv
from prompts.io.errors import UserError
from prompts.io.validate import validate

pytestmark = pytest.mark.usefixtures("quick_programs")

HELD = {"scorers": {}, "prompts": "shapes:validation"}
SWEEPS = list(presets(SWEEP))
MEASURE = {
    "prompts": "shapes:test", "captions": 6,
    "metrics": {"shapes/clip": "higher", "diversity/shapes-clip": "higher"},
}  # fmt: skip


def content(tiny: Path, **changes: Any) -> dict[str, Any]:
    """A sweep of two cells on a tiny pipeline."""
    common = {key: value for key, value in SMALL_RUN.items() if key != "stage"}
    common |= {
        "reference": str(tiny),
        "initial": None,
        "rewards": [],
        "held_out": HELD,
        "guidance": {"where": "off", "scale": 1.0},
    }
    common |= {"steps": 30, "save_every": 3}
    whole = {
        "stage": "sweep", "centre": "shapes-di", "common": common,
        "cells": {"other": {"student": {"learning_rate": 1e-2}}}, "seeds": 1,
        "measure": MEASURE,
    }  # fmt: skip
    return whole | changes


def make(tiny: Path, **changes: Any) -> SweepConfig:
    return validate(SweepConfig, content(tiny, **changes), "test")


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def prepare(config: SweepConfig, output: Path) -> list[sweep.Trial]:
    """The runs of a sweep with the folders that a worker is given."""
    runs = sweep.plan(config, output)
    for run in runs:
        sweep.open_run(run, config.measure)
    return runs


def finish(run: sweep.Trial) -> None:
    content = {"stopped": None, "metrics": None, "drawing_seconds": 1.0, "training_seconds": 1.0}
    (run.folder / "result.json").write_text(json.dumps(content))


# ---- before anything runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", SWEEPS)
def test_every_cell_of_every_sweep_is_valid_and_differs_from_the_centre(preset: str) -> None:
    config = resolve(preset, SWEEP)
    assert isinstance(config, SweepConfig)
    cells = sweep.cells(config)
    assert len(cells) == len(config.cells) + 1
    assert len(sweep.plan(config, Path("nowhere"))) <= 300
    assert len({cell.model_dump_json() for cell in cells.values()}) == len(cells)
    for cell in cells.values():
        assert cell.batch_size == cells["centre"].batch_size
    # Updates are equal, but where they are what is asked.
    assert {name for name, cell in cells.items() if cell.steps != cells["centre"].steps} <= {"long"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cells": {"a": {}, "b": {"stepz": 3}}}, ["cell b", "'stepz'", "did you mean 'steps'?"]),
        ({"cells": {"a": {}, "b": {"method": "di*"}}}, ["cell b", "needs rewards"]),
        ({"centre": "shapes-vae"}, ["centre: no preset 'shapes-vae' here", "belongs to 'align pretrain'"]),
        (
            {"measure": {"prompts": "shapes:test", "captions": 6, "metrics": {"shapes/orakel": "higher"}}},
            ["'shapes/orakel'"],
        ),
        (
            {
                "measure": {
                    "prompts": "shapes:test",
                    "captions": 6,
                    "metrics": {"fd-shapes": "lower", "shapes/clip": "higher"},
                }
            },
            ["the first is the reward", "fd-shapes is no scorer"],
        ),
        ({"measure": MEASURE | {"prompts": "/no/captions.txt"}}, ["/no/captions.txt: no such file"]),
        ({"measure": MEASURE | {"over": "runs/no/checkpoint"}}, ["runs/no/checkpoint: no such folder"]),
        ({"measure": MEASURE | {"images": 1}}, ["compares images of one prompt", "measure.images"]),
        ({"baselines": {"b": {"model": "runs/no/checkpoint"}}}, ["runs/no/checkpoint: no such folder"]),
        ({"baselines": {"b": {"model": "shapes/base", "steps": 4}}}, ["baselines.b.steps", "leave steps out"]),
        ({"baselines": {"other": {"model": "shapes/base"}}}, ["'other' is the name of two"]),
        ({"cells": {"baselines": {}}}, ["'baselines' cannot name a cell"]),
        (
            {
                "equal_reward": [{"better": "x", "than": "centre", "metrics": ["shapes/clip"]}],
                "curves": {"x": ["centre", "other"]},
            },
            ["shapes/clip is the reward"],
        ),
        ({"cells": {"../up": {}}}, ["'../up' cannot name a cell"]),
        ({"cells": {"centre": {}}}, ["'centre' cannot name a cell"]),
        ({"curves": {"x": ["centre", "othr"]}}, ["no cell or curve 'othr'", "did you mean 'other'?"]),
        ({"less_stable": [{"worse": ["centre", "other"], "than": ["other"]}]}, ["pairs 2 cells with 1"]),
        (
            {"equal_reward": [{"better": "x", "than": "y"}], "curves": {"x": ["centre", "other"]}},
            ["no cell or curve 'y'"],
        ),
        ({"equal_reward": [{"better": "centre", "than": "other"}]}, ["single cells; one side must be a curve"]),
        (
            {
                "equal_reward": [{"better": "x", "than": "b"}],
                "curves": {"x": ["b", "b"]},
                "baselines": {"b": {"model": "shapes/base"}},
            },
            ["x and b are baselines"],
        ),
        ({"seeds_of": {"othr": 1}}, ["no cell or curve 'othr'", "did you mean 'other'?"]),
        (
            {
                "measure": {
                    "prompts": "shapes:test",
                    "captions": 6,
                    "metrics": {"shapes/clip": "higher", "win/shapes/rule": "higher"},
                }
            },
            ["name it with measure.over"],
        ),
        (
            {
                "measure": {
                    "prompts": "shapes:test",
                    "captions": 6,
                    "metrics": {"shapes/clip": "higher", "win/fd-shapes": "higher"},
                    "over": "shapes/base",
                }
            },
            ["no metric 'win/fd-shapes'"],
        ),
    ],
)
def test_an_error_in_the_last_cell_is_told_before_anything_runs(
    tiny: Path, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as told:
        sweep.sweep(make(tiny, **changes), tmp_path / "out", processes=1)
    for word in words:
        assert word in str(told.value)
    assert not (tmp_path / "out").exists()


def test_finished_runs_of_another_configuration_are_not_taken_for_this_one(tiny: Path, tmp_path: Path) -> None:
    prepare(make(tiny), tmp_path)
    with pytest.raises(
        UserError, match=r"other/seed-0/config.yaml: student.learning_rate was 0.01 and is now 0.5; keep the old value"
    ):
        sweep.plan(make(tiny, cells={"other": {"student": {"learning_rate": 0.5}}}), tmp_path)
    # How it shall be measured can be corrected until it is.
    other = make(tiny, measure=MEASURE | {"captions": 7})
    (run, *_) = sweep.plan(other, tmp_path)
    finish(run)
    with pytest.raises(UserError, match=r"measure.yaml: captions was 6 and is now 7"):
        sweep.plan(other, tmp_path)
    # More seeds and more cells are no other configuration.
    assert len(sweep.plan(make(tiny, seeds=3, cells={**content(tiny)["cells"], "third": {}}), tmp_path)) == 9


def test_runs_with_other_weights_of_the_world_are_not_taken_for_these(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(tiny)
    run, begun = prepare(config, tmp_path)
    before = run.identity(config.measure)
    finish(run)
    assert len(sweep.results(config, tmp_path)) == 1
    monkeypatch.setattr(embedded, "digest", lambda: "another")
    assert run.identity(config.measure) != before
    with pytest.raises(UserError, match=r"centre/seed-0: made with other weights of the world than there are now"):
        sweep.plan(config, tmp_path)
    (run.folder / "config.yaml").unlink()  # what was only begun is no less of other weights
    with pytest.raises(UserError, match=f"{begun.cell}/seed-0: made with other weights"):
        sweep.plan(config, tmp_path)


def test_the_images_that_a_reward_chose_are_not_taken_for_anothers(tiny: Path, tmp_path: Path) -> None:
    baselines = {"one": {"model": str(tiny)}, "best": {"model": str(tiny), "best_of": 2}}
    metrics = {"shapes/clip": "higher", "shapes/oracle": "higher"}
    config, turned = (
        make(tiny, baselines=baselines, measure=MEASURE | {"metrics": dict(each)})
        for each in (metrics.items(), reversed(metrics.items()))
    )
    one, best, *_ = runs = prepare(config, tmp_path)
    finish(one)
    assert len(sweep.plan(turned, tmp_path)) == len(runs)
    assert one.identity(config.measure) == one.identity(turned.measure)
    finish(best)
    assert best.identity(config.measure) != best.identity(turned.measure)
    with pytest.raises(UserError, match=r"best.measure.yaml: the reward, .* was shapes/clip and is now shapes/oracle"):
        sweep.plan(turned, tmp_path)


def test_a_sweep_around_a_training_of_ones_own(tiny: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: shapes-di\nseed: 9\n")
    sweep_file = tmp_path / "sweep.yaml"
    sweep_file.write_text(yaml.safe_dump(content(tiny, centre=str(mine)), sort_keys=False))
    config = resolve(str(sweep_file), SWEEP)
    assert isinstance(config, SweepConfig)
    assert config == make(tiny, centre=str(mine))
    assert {cell.seed for cell in sweep.cells(config).values()} == {9}


def test_more_seeds_of_a_cell_than_of_all_are_refused(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"seeds_of\.other = 3 is more than seeds = 1"):
        make(tiny, seeds_of={"other": 3})


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_and_gone_on_with_two_processes_leave_what_one_leaves(tiny: Path, tmp_path: Path) -> None:
    config = make(tiny)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content(tiny), sort_keys=False))
    output = tmp_path / "two"
    code = f"""
from pathlib import Path
from align.ablation import sweep
from align.ablation.config import SweepConfig
from prompts.io.validate import validate
from prompts.io.yaml import read_yaml
config = validate(SweepConfig, read_yaml(Path({str(tmp_path / "sweep.yaml")!r})), "test")
raise SystemExit(0 if sweep.sweep(config, Path({str(output)!r}), processes=2) else 130)
"""
    runs = sweep.plan(config, output)

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=os.environ)

    process = start()
    while process.poll() is None and max(run.done for run in runs) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not any(run.finished for run in runs), "the kill came too late to be one"
    time.sleep(0.5)
    seen = [run.done for run in runs]
    time.sleep(1)
    assert seen == [run.done for run in runs], "a run went on though its sweep was dead"

    process = start()
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    for one, two in zip(prepare(config, tmp_path / "one"), runs, strict=True):
        assert sweep.carry_out(one.folder)
        assert result(one.folder)["metrics"] == result(two.folder)["metrics"]
        assert [json.loads(line)["step"] for line in (two.folder / "log.jsonl").read_text().splitlines()] == list(
            range(1, 32)
        )
        assert not (two.folder / "state").exists()
    first, second = (result(run.folder)["metrics"]["shapes/clip"] for run in runs)
    assert first["n"] == 12
    assert first["value"] != second["value"]

    before = [(run.folder / "result.json").stat().st_mtime_ns for run in runs]
    assert sweep.sweep(config, output, processes=2)
    assert before == [(run.folder / "result.json").stat().st_mtime_ns for run in runs], "what is finished was run again"


def test_a_run_that_diverges_or_is_stopped_is_a_result(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from align.training import validation

    guarded = {"rewards": [{"scorer": "shapes/clip", "scale": 0.1}], "method": "di++"}
    guarded["held_out"] = {
        "scorers": {"shapes/oracle": 0.5},
        "prompts": "shapes:test",
        "every": 2,
        "images": 4,
        "guard": "stop",
    }
    wild = {"student": {"learning_rate": 1e30, "max_grad_norm": None}, "steps": 3}
    config = make(tiny, cells={"wild": wild, "guarded": guarded})
    _, diverged, stopped = prepare(config, tmp_path)
    monkeypatch.setattr(validation.Validation, "evaluate", lambda *_: ("it fell", {}) if tripping else (None, {}))
    tripping = False
    assert sweep.carry_out(diverged.folder)
    tripping = True
    assert sweep.carry_out(stopped.folder)
    one, other = result(diverged.folder), result(stopped.folder)
    assert one["metrics"] is None
    assert one["stopped"]["by"] == "divergence"
    assert 1 <= one["stopped"]["step"] <= 4
    assert other["stopped"] == {"step": 2, "by": "guard", "why": "stopped at step 2 by held_out.guard (it fell)"}
    assert other["metrics"]["shapes/clip"]["n"] == 12

    # Killed while it was measured: it does not go on from its last state.
    (stopped.folder / "result.json").unlink()
    assert sweep.carry_out(stopped.folder)
    assert result(stopped.folder)["stopped"] == other["stopped"]

    found = sweep.results(config, tmp_path)
    assert claims.stopped(found, ["wild", "guarded"]) == (2, 2)
    assert claims.stopped(found, ["centre"]) == (0, 0)
    table.write(config, found, "small", tmp_path / "table")
    rows = {row["cell"]: row for row in read_csv(tmp_path / "table" / "runs.csv")}
    assert rows["wild"]["shapes/clip"] == ""
    assert rows["guarded"]["stopped_at"] == "2"

    # Elsewhere, a sweep of the same configuration goes on from that table, to the same digits.
    sweep.take(config, tmp_path / "elsewhere", tmp_path / "table")
    assert sweep.results(config, tmp_path / "elsewhere") == found
    assert [run.finished for run in sweep.plan(config, tmp_path / "elsewhere")] == [False, True, True]
    other_seeds = make(tiny, cells={"wild": wild, "guarded": guarded}, seeds=2)
    sweep.take(other_seeds, tmp_path / "more", tmp_path / "table")
    assert len(sweep.results(other_seeds, tmp_path / "more")) == 2
    for changed in (
        make(tiny, cells={"wild": wild | {"steps": 4}, "guarded": guarded}),
        make(tiny, cells={"wild": wild, "guarded": guarded}, measure=content(tiny)["measure"] | {"captions": 7}),
    ):
        with pytest.raises(
            UserError, match=r"runs.csv: wild was trained or measured by another configuration, .*--from"
        ):
            sweep.take(changed, tmp_path / "changed", tmp_path / "table")
    assert not (tmp_path / "changed").exists()


def test_a_run_that_stopped_itself_is_told_when_it_has(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(job: sweep.Job, _: Any) -> subprocess.Popen[bytes]:
        (run,) = job
        run.folder.mkdir(parents=True)
        why = {"step": 3, "why": "step 3: assistant is nan", "by": "divergence"} if run.cell == "other" else None
        (run.folder / "result.json").write_text(json.dumps({"stopped": why}))
        return subprocess.Popen([sys.executable, "-S", "-c", ""])

    monkeypatch.setattr(sweep, "_start", start)
    assert sweep.sweep(make(tiny), tmp_path / "out", processes=1)
    told = capsys.readouterr().err
    assert told.count("step 3") == 1
    assert "other, seed 0: step 3: assistant is nan" in told


def test_a_run_that_fails_is_told_with_its_log(tiny: Path, tmp_path: Path) -> None:
    config = make(tiny, cells={}, common={**content(tiny)["common"], "prompts": str(tmp_path / "none.txt")})
    with pytest.raises(UserError, match=r"centre/seed-0: the run failed \(prompts = .*none.txt: no such file"):
        sweep.sweep(config, tmp_path / "out", processes=1)


def test_a_baseline_is_measured_once_beside_the_runs(tiny: Path, tmp_path: Path) -> None:
    metrics = dict.fromkeys(("shapes/clip", "win/shapes/clip", "diversity/shapes-clip"), "higher")
    measure = {"prompts": "shapes:test", "captions": 6, "over": str(tiny), "metrics": metrics}
    baselines = {f"best-of-{n}": {"model": str(tiny), "best_of": n} for n in (1, 3)} | {
        "longer": {"model": str(tiny), "steps": 2}
    }
    curves, claim = {"best": ["best-of-1", "best-of-3"]}, [{"better": "other", "than": "best"}]
    config = make(
        tiny, measure=measure, baselines=baselines, curves=curves, equal_reward=claim, seeds=2, seeds_of={"other": 1}
    )
    runs = prepare(config, tmp_path)
    assert [(run.cell, run.seed) for run in runs] == [
        ("best-of-1", None),
        ("best-of-3", None),
        ("longer", None),
        ("centre", 0),
        ("other", 0),
        ("centre", 1),
    ]
    for run in runs[:3]:
        assert sweep.carry_out(run.folder)
    one, three, longer = ({name: x["value"] for name, x in result(run.folder)["metrics"].items()} for run in runs[:3])
    assert one["win/shapes/clip"] == 0.5, "of ties all"
    assert three["win/shapes/clip"] > 0.7
    assert three["shapes/clip"] > one["shapes/clip"] != longer["shapes/clip"]
    found = sweep.results(config, tmp_path)
    assert [row["seed"] for row in found] == [None] * 3
    assert claims.by_seed(found, "best-of-3", "shapes/clip", 2) == pytest.approx([three["shapes/clip"]] * 2)
    table.write(config, found, "small", tmp_path / "table")
    assert "| best-of-3 |" in (tmp_path / "table" / "README.md").read_text()
    # Over the same images drawn with other noise it is told what to do about what is measured already.
    apart = config.model_copy(update={"measure": config.measure.model_copy(update={"over_seed": 7})})
    with pytest.raises(UserError, match=r"over_seed was not set and is now 7; keep the old value, add --measure-again"):
        sweep.plan(apart, tmp_path)
    # What the images of `over` score is kept, and taken.
    kept = json.loads((tmp_path / "over.json").read_text()) | {"scores": {"shapes/clip": [-1000.0] * 12}}
    for of, wins in ((kept["of"], 1.0), ("another model, or other captions", 0.5)):
        (tmp_path / "over.json").write_text(json.dumps(kept | {"of": of}))
        assert sweep.carry_out(runs[0].folder)
        assert result(runs[0].folder)["metrics"]["win/shapes/clip"]["value"] == wins


@pytest.mark.slow
def test_what_is_finished_can_be_measured_again_without_being_trained_again(tiny: Path, tmp_path: Path) -> None:
    metrics = dict.fromkeys(("shapes/clip", "win/shapes/clip", "diversity/shapes-clip"), "higher")
    measure = {"prompts": "shapes:test", "captions": 6, "over": str(tiny), "metrics": metrics}
    baselines = {"base": {"model": str(tiny)}, "gone": {"model": str(tiny), "best_of": 2}}
    config = make(tiny, measure=measure, baselines=baselines)
    assert sweep.sweep(config, tmp_path, processes=2)
    before = {run.folder: run.result for run in sweep.plan(config, tmp_path)}
    trained = (tmp_path / "centre" / "seed-0" / "log.jsonl").stat().st_mtime_ns
    apart = make(tiny, measure=measure | {"over_seed": 7}, baselines=baselines)
    checkpoint = tmp_path / "other" / "seed-0" / "checkpoint"
    checkpoint.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"other/seed-0: measured otherwise, and its checkpoint is not there any more"):
        sweep.sweep(apart, tmp_path, processes=2, measure_again=True)
    assert all(run.finished for run in sweep.plan(config, tmp_path)), "nothing was set aside"
    (tmp_path / "elsewhere").rename(checkpoint)
    # What was known is taken as it was, so that it shows whether it was measured.
    content = result(checkpoint.parent)
    content["metrics"]["shapes/clip"]["value"] = content["drawing_seconds"] = 123.0
    (checkpoint.parent / "result.json").write_text(json.dumps(content))

    assert sweep.sweep(apart, tmp_path, processes=2, measure_again=True)
    for run in sweep.plan(apart, tmp_path):
        old, new = before[run.folder], run.result
        assert not (run.folder / sweep.EARLIER).exists()
        assert new["training_seconds"] == old["training_seconds"]
        assert new["metrics"]["win/shapes/clip"] != old["metrics"]["win/shapes/clip"]
        if run.cell != "other":
            assert new["metrics"]["shapes/clip"] == old["metrics"]["shapes/clip"]
    assert result(checkpoint.parent)["metrics"]["shapes/clip"]["value"] == 123.0
    assert result(checkpoint.parent)["drawing_seconds"] == 123.0
    assert (tmp_path / "centre" / "seed-0" / "log.jsonl").stat().st_mtime_ns == trained
    # Other images leave nothing of it.
    options = apart.measure.model_copy(update={"captions": 5})
    known = still_known(content["metrics"], apart.measure, options), still_known(content["metrics"], options, options)
    assert known == ({}, content["metrics"])


# ---- the table -------------------------------------------------------------------------------------------------------

METRICS = {"reward": "higher", "good": "higher", "distance": "lower"}
CURVES = {"A": ["a0", "a1", "a2"], "B": ["b0", "b1", "b2"]}


def planted(
    *, gap: float, spread: float, stopped: int = 0, seeds: int = 5, noise: float = 0.02, world: int = 3
) -> tuple[SweepConfig, list[dict[str, Any]]]:
    """Curves A and B over overlapping rewards, A higher by `gap` in `good` and lower in `distance` at equal reward;
    cell `wild` with `spread` times the noise of the centre, `stopped` of its runs stopped.
    """
    config = SweepConfig.model_validate(
        {
            "stage": "sweep",
            "centre": "shapes-di",
            "seeds": seeds,
            "curves": CURVES,
            "equal_reward": [{"better": "A", "than": "B"}],
            "cells": {name: {} for name in (*CURVES["A"], *CURVES["B"], "wild")},
            "less_stable": [{"worse": ["wild"], "than": ["centre"]}],
            "measure": {"prompts": "shapes:test", "captions": 8, "metrics": METRICS},
        }
    )
    rng = np.random.default_rng(world)
    rows = []
    for seed in range(seeds):
        for cell in ("centre", *config.cells):
            scale = spread if cell == "wild" else 1.0
            reward = {"a": 0.0, "b": 0.5}.get(cell[0], 1.0) + (int(cell[1]) if cell[0] in "ab" else 0)
            ahead = gap if cell[0] == "a" else 0.0
            values = {"reward": reward, "good": 3 - reward + ahead, "distance": reward**2 / 4 - ahead}
            metrics = {
                name: {"value": value + scale * noise * rng.standard_normal(), "n": 16}
                for name, value in values.items()
            }
            stop = {"step": 9, "by": "guard", "why": "it fell"} if cell == "wild" and seed < stopped else None
            rows.append(
                {
                    "cell": cell,
                    "seed": seed,
                    "config": "0" * 12,
                    "stopped": stop,
                    "metrics": metrics,
                    "training_seconds": 1.0,
                    "drawing_seconds": 1.0,
                }
            )
    return config, rows


def verdicts(config: SweepConfig, rows: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Verdicts by metric and claim: `good` at equal reward, `spread`, `share`."""
    found: dict[str, set[str]] = {}
    for finding in claims.findings(config, rows):
        quantity = finding.answer.quantity
        metric = quantity.split()[0].rstrip(",")
        key = "share" if metric == "share" else "spread" if "deviations" in quantity else metric
        found.setdefault(key, set()).add(finding.verdict)
    return found


def test_what_is_planted_is_found_and_nothing_else() -> None:
    assert verdicts(*planted(gap=0.5, spread=40.0, stopped=8, seeds=8)) == {
        "good": {"holds"},
        "distance": {"holds"},
        "spread": {"holds"},
        "share": {"holds"},
    }
    assert verdicts(*planted(gap=-0.5, spread=0.02)) == {
        "good": {"the opposite holds"},
        "distance": {"the opposite holds"},
        "spread": {"the opposite holds"},
        "share": {"inconclusive"},
    }


def test_where_no_run_was_stopped_that_is_no_answer_among_the_others() -> None:
    for stopped in (0, 8):
        share = claims.findings(*planted(gap=0.5, spread=1.0, stopped=stopped, seeds=8))[-1]
        assert share.answer.quantity.startswith("share of runs stopped")
        assert math.isnan(share.answer.p) == (stopped == 0)


def test_where_nothing_is_planted_it_is_inconclusive() -> None:
    config, rows = planted(gap=0.0, spread=1.0)
    for row in rows:  # the straight curve alone is the same for both; a curved one is not, cut into other segments
        row["metrics"]["distance"]["value"] = row["metrics"]["good"]["value"]
    assert all(found == {"inconclusive"} for found in verdicts(config, rows).values())


def test_reading_off_a_curve_is_exact_on_straight_lines_and_beyond_their_ends() -> None:
    x, at = np.array([2.0, 0.0, 1.0]), np.array([-1.0, 0.25, 1.5, 3.0])
    assert claims.read_off(x, 3 * x + 1, at) == pytest.approx(3 * at + 1)
    bent = np.array([4.0, 0.0, 1.0])
    assert claims.read_off(x, bent, at) == pytest.approx([-1.0, 0.25, 2.5, 7.0])
    # Smooth it goes through the same points, and between them as the bend suggests.
    knots = np.linspace(0, 2, 5)
    assert claims.read_off(knots, knots**2, knots, smooth=True) == pytest.approx(knots**2)
    between = np.array([0.75, 1.25])
    straight, smooth = (claims.read_off(knots, knots**2, between, smooth=each) for each in (False, True))
    assert (abs(smooth - between**2) < abs(straight - between**2) / 3).all()


def test_curves_of_one_bend_cut_into_other_segments_differ_only_where_they_are_read_straight() -> None:
    x, u = np.tile(np.linspace(0, 4, 5), (5, 1)), np.tile(np.array([0.0, 0.5, 2.5, 3.0, 4.0]), (5, 1))
    found = claims.at_equal_reward(claims.Curve(x, x**2), claims.Curve(u, u**2))
    assert found is not None
    assert abs(found.difference.value) > max(0.1, 4 * abs(found.smooth))


def test_the_difference_at_equal_reward_is_the_closed_form() -> None:
    """Of two noiseless parallel lines the difference is their distance wherever it is read, with no uncertainty."""
    x, u = np.tile([0.0, 1.0, 2.0], (5, 1)), np.tile([0.5, 3.0], (5, 1))
    found = claims.at_equal_reward(claims.Curve(x, 5 - 2 * x), claims.Curve(u, 4 - 2 * u))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.65, 1.85)), "four fifths of what both reach"
    assert found.difference == pytest.approx((1.0, 1.0, 1.0, 5))
    assert found.smooth == pytest.approx(1.0)
    assert claims.at_equal_reward(claims.Curve(x, x), claims.Curve(u + 9, u)) is None, "no reward is shared"
    x[1:, 0] = np.nan
    assert claims.at_equal_reward(claims.Curve(x, x), claims.Curve(u, u)) is None, "one seed has all runs"


def test_a_point_is_compared_with_a_curve_at_its_own_reward() -> None:
    x, u = np.tile([0.0, 2.0], (5, 1)), np.linspace(0.9, 1.1, 5)[:, None]
    line, point = claims.Curve(x, 5 - 2 * x), claims.Curve(u, 6 - 2 * u)
    for sides, gap in (((point, line), 1.0), ((line, point), -1.0)):
        found = claims.at_equal_reward(*sides)
        assert found is not None
        assert (found.low, found.high) == pytest.approx((1.0, 1.0))
        assert found.difference == pytest.approx((gap, gap, gap, 5))
    assert claims.at_equal_reward(claims.Curve(u + 5, u), line) is None, "beyond the curve's end"


def test_the_interval_at_equal_reward_covers_as_it_says() -> None:
    """In 95 of 100 worlds of five seeds, whose runs of a seed share their noise, the truth is inside."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(300):
        shared = rng.standard_normal((5, 1)) * 0.1
        x, u = (np.array([0.0, 1.0, 2.0]) + shared + 0.03 * rng.standard_normal((5, 3)) for _ in range(2))
        y, v = (1 - z + shared + 0.03 * rng.standard_normal((5, 3)) for z in (x, u))
        found = claims.at_equal_reward(claims.Curve(x, y + 0.3), claims.Curve(u, v))
        assert found is not None
        inside += found.difference.low <= 0.3 <= found.difference.high
    assert 0.92 <= inside / 300 <= 0.98


def test_shares_and_spreads_against_published_and_simulated_figures() -> None:
    # Newcombe (1998), table II, method 10: (a) 56/70 - 48/80 and (h) 10/10 - 0/10.
    assert claims.share_difference(56, 70, 48, 80) == pytest.approx((0.2, 0.0524, 0.3339, 150), abs=1e-4)
    assert claims.share_difference(10, 10, 0, 10) == pytest.approx((1.0, 0.6075, 1.0, 20), abs=1e-4)
    assert claims.sign_flips(np.array([1.0, 2.0, 3.0])) == 2 / 8
    assert claims.sign_flips(np.array([1.0, -2.0, 1.0])) == claims.sign_flips(np.zeros(3)) == 1


def test_signs_of_many_seeds_are_turned_at_random() -> None:
    rng = np.random.default_rng(0)
    few = rng.standard_normal(claims.TURNED) + 0.4
    assert claims.sign_flips(np.zeros(30)) == 1.0
    assert claims.sign_flips(np.ones(30)) == pytest.approx(2.0**-claims.TURNED)
    # A seed whose runs do not differ takes no part.
    assert claims.sign_flips(np.append(few, 0.0)) == pytest.approx(claims.sign_flips(few), abs=0.01)


@pytest.mark.parametrize("across", [0.0, 0.8])
@pytest.mark.parametrize("within", [0.0, 0.5])
def test_spreads_of_runs_that_share_their_seeds_are_compared_as_the_level_says(within: float, across: float) -> None:
    """Cells of one side share a part of their scatter, and that of both sides may be the same."""
    rng, inside, chances = np.random.default_rng(1), 0, []
    for _ in range(600):
        shared = rng.standard_normal(5)
        parts = []
        for scale in (2.0, 1.0):
            own = across * shared + math.sqrt(1 - across**2) * rng.standard_normal(5)
            cells = [within**0.5 * own + (1 - within) ** 0.5 * rng.standard_normal(5) for _ in range(3)]
            parts.append([scale * cell + place for place, cell in zip((0, 9, 4), cells, strict=True)])
        worse, than = parts
        ratio, _ = claims.spread_ratio(worse, than)
        inside += ratio.low <= 2 <= ratio.high
        chances.append(claims.spread_ratio([part / 2 for part in worse], than)[1])
    assert 0.93 <= inside / 600 <= 0.985
    assert 0.015 <= np.mean(np.array(chances) < 0.05) <= 0.07


@pytest.mark.parametrize("seeds", [4, 5, 8])
def test_the_smallest_difference_is_found_four_times_in_five(seeds: int) -> None:
    """Of normal differences, by the test that is made, at the first of 33 levels."""
    rng, level = np.random.default_rng(seeds), claims.LEVEL / 33
    one = claims.mean_of(rng.standard_normal(seeds))
    answer = claims.Answer("", "", "", one, 0.5, over_seeds=True)
    away = claims._detectable(answer, level) / claims._error(one)
    found = 0
    for _ in range(4000):
        seen = claims.mean_of(rng.standard_normal(seeds) + away / math.sqrt(seeds))
        found += claims._p_of_difference(seen) < level
    assert found / 4000 == pytest.approx(claims.POWER, abs=0.02)


def test_a_difference_that_would_have_been_found_is_found_as_often_as_is_said() -> None:
    """And in worlds where nothing is different, some claim is made in one of twenty, whatever the number of claims."""
    found, wrong, smallest = 0, 0, []
    for world in range(200):
        config, rows = planted(gap=0.0, spread=1.0, seeds=8, world=world)
        for row in rows:  # straight curves alone are the same for both
            row["metrics"]["distance"]["value"] = (
                row["metrics"]["reward"]["value"] + row["metrics"]["good"]["value"] - 3
            )
        result = claims.findings(config, rows)
        wrong += any(finding.verdict != claims.INCONCLUSIVE for finding in result)
        smallest.append(result[0].detectable)
    gap = float(np.median(smallest))
    for world in range(200):
        config, rows = planted(gap=gap, spread=1.0, seeds=8, world=world)
        found += claims.findings(config, rows)[0].verdict == claims.HOLDS
    assert wrong / 200 <= 0.09
    assert 0.7 <= found / 200 <= 0.95


def test_the_table_pairs_by_seed_and_its_files_say_the_same(tmp_path: Path) -> None:
    config, rows = planted(gap=0.5, spread=1.0)
    for row in rows:  # what runs of a seed share is no part of a difference
        for value in row["metrics"].values():
            value["value"] += 100 * row["seed"]
    cell = next(r for r in claims.cell_rows(config, rows) if (r["cell"], r["metric"]) == ("a2", "good"))
    assert cell["high"] - cell["low"] > 300
    assert cell["difference low"] < -0.5 < cell["difference high"] < -0.4
    table.write(config, rows, "planted", tmp_path)
    written = {(r["cell"], r["metric"]): r for r in read_csv(tmp_path / "cells.csv")}
    assert float(written["a2", "good"]["difference mean"]) == pytest.approx(cell["difference mean"])
    assert len(read_csv(tmp_path / "runs.csv")) == len(rows)
    text, drawing = (tmp_path / "README.md").read_text(), (tmp_path / "curves.svg").read_text()
    assert "## Claim: at equal reward, A is better than B" in text
    known = [row for row in read_csv(tmp_path / "claims.csv") if row["p"] not in ("", "nan")]
    assert f"for all {len(known)} answers that have one" in text
    assert len(known) == 5, "two at equal reward and three spreads"
    assert "currentColor" in drawing and "prefers-color-scheme:dark" in drawing and INK not in drawing
    table.write(config, rows, "mine/planted.yaml", tmp_path / "file")
    text = (tmp_path / "file" / "README.md").read_text()
    assert text.startswith("# planted\n") and "`align sweep mine/planted.yaml --table DIR`" in text
    assert resolve(str(tmp_path / "file" / "sweep.yaml"), SWEEP) == config
    table.write(config, rows, "planted", tmp_path / "again")
    for name in ("README.md", "cells.csv", "claims.csv", "curves.svg"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name

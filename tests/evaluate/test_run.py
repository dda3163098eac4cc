"""The runner: the same records and the same row however they come about, and no score for what is not there."""

import errno
import hashlib
import itertools
import multiprocessing
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hub import Hub
from PIL import Image
from recording import write_rows
from torch import Tensor

from evaluate import cli, distribution, pipelines, scorers
from evaluate.results import leaderboard
from evaluate.results.csv_io import read_csv
from evaluate.results.records import Records
from evaluate.runs import run, store
from evaluate.runs.images import existing_images
from evaluate.runs.settings import METRICS as USUAL
from evaluate.runs.settings import Settings, _shard, from_options
from prompts import suites
from prompts.io import files
from prompts.io.errors import UserError
from prompts.suites import Prompt, Suite

N = 22
METRICS = ("shapes/clip", "fd-shapes")


def suite(n: int = N) -> Suite:
    from prompts.shapes import sample_captions

    texts = list(dict.fromkeys(sample_captions(8 * n, split="test", seed=3)))[:n]
    prompts = tuple(Prompt(f"{i:04d}", text, {"family": text.split()[0]}) for i, text in enumerate(texts))
    return Suite("small", prompts, hashlib.sha256("".join(texts).encode()).hexdigest(), "drawn here", "Apache-2.0")


def settings(tiny: Path, output: Path, **changes: Any) -> Settings:
    return Settings(
        **{"suite": suite(), "model": str(tiny), "metrics": METRICS, "batch": 4, "output": output} | changes
    )


def row(output: Path) -> dict[str, str]:
    (found,) = read_csv(output / "small.csv")
    return found


@pytest.fixture
def whole(tiny: Path, tiny_clip: None, tmp_path: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    path = run.run(settings(tiny, tmp_path / "whole"), show=False)
    assert path
    return Records.load(path).frame, row(tmp_path / "whole")


def test_records_and_row_are_complete(whole: tuple[pd.DataFrame, dict[str, str]], tiny: Path) -> None:
    frame, line = whole
    assert len(frame) == frame["id"].nunique() == N
    assert frame["score.shapes/clip"].notna().all()
    assert frame["error"].isna().all()
    assert frame["image_sha256"].nunique() == N
    assert line["complete"] == "True"
    assert float(line["shapes/clip"]) == pytest.approx(frame["score.shapes/clip"].mean(), rel=1e-12)
    assert float(line["shapes/clip se"]) == pytest.approx(frame["score.shapes/clip"].sem(), rel=1e-12)
    assert line["model_sha256"] == pipelines.digest(str(tiny))
    assert all(line[name] for name in leaderboard.FIXED)
    assert {"fd-shapes", "fd-shapes low", "fd-shapes high"} <= line.keys()


def test_shards_make_the_same_row_in_any_order(
    whole: tuple[pd.DataFrame, dict[str, str]], tiny: Path, tmp_path: Path, tiny_clip: None
) -> None:
    ends = [run.run(settings(tiny, tmp_path / "shards", shard=(i, 3)), show=False) for i in (2, 0, 1)]
    assert ends[:2] == [None, None]
    assert ends[2]
    pd.testing.assert_frame_equal(Records.load(ends[2]).frame, whole[0], check_exact=True)
    assert row(tmp_path / "shards") == whole[1]


def test_an_interrupted_run_goes_on_to_the_same_row(
    whole: tuple[pd.DataFrame, dict[str, str]],
    tiny: Path,
    tmp_path: Path,
    tiny_clip: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = store.replace
    # The first while images are written, the last while scores are.
    for stop in (3, 2, 8, 3, 2):

        def interrupted(path: Path, write: Any, stop: int = stop, calls: Any = itertools.count()) -> None:
            if next(calls) == stop:
                raise KeyboardInterrupt
            original(path, write)

        for place in (store, files):  # images and JSON
            monkeypatch.setattr(place, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.run(settings(tiny, tmp_path / "cut"), show=False)
    for place in (store, files):
        monkeypatch.setattr(place, "replace", original)
    assert run.run(settings(tiny, tmp_path / "cut"), show=False)
    assert row(tmp_path / "cut") == whole[1]


def test_nothing_is_drawn_or_scored_twice(
    tiny: Path, tmp_path: Path, tiny_clip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.run(settings(tiny, tmp_path), show=False)
    before = row(tmp_path)
    monkeypatch.setattr(scorers.Scorer, "_scores", lambda *a, **k: pytest.fail("scored again"))
    run.run(settings(tiny, tmp_path), show=False, make=lambda *a, **k: pytest.fail("drawn again"))
    assert row(tmp_path) == before
    with pytest.raises(pytest.fail.Exception, match="drawn again"):
        run.run(settings(tiny, tmp_path, seeds=(1,)), show=False, make=lambda *a, **k: pytest.fail("drawn again"))


@pytest.mark.parametrize(
    ("metrics", "changes", "said"),
    [
        (("shapes/clip", "hpsv2.1/aa"), {"weights": {"hpsv2.1/aa": "nowhere.pt"}}, r"nowhere\.pt: no such file"),
        (("fid/coco2014-30k",), {}, "give their folder as the reference"),
        (("fid/coco2014-30k",), {"reference": Path("nowhere")}, "nowhere: 0 images there"),
        (("shapes/clip",), {"model": "./nowhere"}, "no such folder"),
        (("shapes/clip",), {"reference": Path("nowhere")}, "--reference nowhere: no metric here compares with it"),
        (("fid/coco2014-30k", "patch-fid/dmd2", "cmmd"), {"reference": Path("nowhere")}, "measure them one at a time"),
        (("diversity/shapes-clip",), {}, "there would be one of each; give --per-prompt 2"),
        (("shapes/clip", "shapes/oracle"), {"recipe": "{width: 64, height: 32}"},
        "--metric shapes/clip: .* 64 x 32 images of .*tiny"),
        (("fd-shapes",), {"recipe": "{width: 64, height: 32}"}, "--metric fd-shapes: .* 64 x 32 images of .*tiny"),
        (("shapes/oracle",), {"sample_size": 32}, "--metric shapes/oracle: .* 64 x 64 images of .*tiny.*leave it out"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_before_an_image_is_drawn(
    metrics: tuple[str, ...], changes: dict[str, Any], said: str, tiny: Path, tiny_clip: None, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny, tmp_path / "tiny")
    if recipe := changes.pop("recipe", None):
        (model / "recipe.yaml").write_text(recipe)
    if edge := changes.pop("sample_size", None):
        config = model / "unet" / "config.json"
        config.write_text(config.read_text().replace('"sample_size": 16', f'"sample_size": {edge}'))
    asked = settings(model, tmp_path / "out", **{"metrics": metrics} | changes)
    with pytest.raises(UserError, match=said):
        run.run(asked, show=False, make=lambda *a, **k: pytest.fail("drawn"))
    assert not (tmp_path / "out").exists()


def test_scorers_wait_in_the_hosts_memory_until_images_are_drawn(
    tiny: Path, tiny_clip: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def load(name: str, **options: Any) -> scorers.Scorer:
        events.append(f"loaded on {options['device']}")
        scorer = scorers.load(name, **options)
        monkeypatch.setattr(scorer, "to", lambda device: events.append(f"moved to {device}"))
        return scorer

    def draw(texts: Sequence[str], ids: Sequence[str]) -> Tensor:
        events.append("drawn")
        return plain(texts)

    asked = settings(tiny, tmp_path, metrics=("shapes/clip",), device="cpu:0", batch=N)
    assert run.run(asked, show=False, make=stub(draw), load=load)
    assert events == ["loaded on cpu", "drawn", "moved to cpu:0"]
    assert run.run(asked, show=False, make=stub(draw), load=load)
    assert events[3:] == ["loaded on cpu"], "nothing is left to score"


def test_the_size_a_model_draws_is_known_from_its_files(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pipelines.size(str(tiny)) == pipelines.size("shapes/base") == (32, 32)
    monkeypatch.setattr(pipelines, "_overlays", lambda *_: pytest.fail("a recipe that says it needs no files"))
    assert pipelines.size("sdxl-dmd2-1step-1024") == (1024, 1024)


def test_a_leaderboard_that_cannot_take_the_row_is_refused_before_an_image_is_drawn(
    tiny: Path, tmp_path: Path, tiny_clip: None
) -> None:
    (tmp_path / "small.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not a leaderboard of this version"):
        run.run(settings(tiny, tmp_path), show=False, make=stub(lambda *_: pytest.fail("drawn")))
    assert [path.name for path in tmp_path.iterdir()] == ["small.csv"]


def test_a_truncated_image_is_drawn_again(tiny: Path, tmp_path: Path, tiny_clip: None) -> None:
    run.run(settings(tiny, tmp_path), show=False)
    before = row(tmp_path)
    victim = sorted(tmp_path.rglob("*.png"))[7]
    victim.write_bytes(victim.read_bytes()[:40])
    run.run(settings(tiny, tmp_path), show=False)
    assert row(tmp_path) == before
    with Image.open(victim) as image:
        assert image.size == (32, 32)


def test_an_image_that_is_lost_before_it_is_scored_is_an_error_that_the_next_run_fixes(
    whole: tuple[pd.DataFrame, dict[str, str]],
    tiny: Path,
    tmp_path: Path,
    tiny_clip: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw_blocks = run.draw_blocks

    def draw_and_lose(*arguments: Any, **options: Any) -> Any:
        images = draw_blocks(*arguments, **options)
        sorted(tmp_path.glob("cut/**/*.png"))[7].unlink()
        return images

    with monkeypatch.context() as patch:
        patch.setattr(run, "draw_blocks", draw_and_lose)
        assert run.run(settings(tiny, tmp_path / "cut"), show=False) is None, "a block is not whole"
    (errors,) = {text for path in tmp_path.rglob("scores/**/*.json") if "not the image" in (text := path.read_text())}
    assert errors.count("not the image that was drawn; delete it and run again") == 1
    assert run.run(settings(tiny, tmp_path / "cut"), show=False)
    assert row(tmp_path / "cut") == whole[1]


def test_an_index_is_read_twice_whatever_the_number_of_scorers(
    tiny: Path, tmp_path: Path, tiny_clip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before drawing, and for the records: other processes and damage have their time between the two."""
    reads: list[int] = []
    read = store.Store.read
    monkeypatch.setattr(store.Store, "read", lambda self, block: reads.append(block.index) or read(self, block))
    metrics = ("shapes/clip", "shapes/oracle", "fd-shapes")
    assert run.run(settings(tiny, tmp_path, metrics=metrics), show=False)
    assert sorted(reads) == sorted([*range(6), *range(6)])


def stub(images: Any) -> Any:
    """A sampler whose images `images(texts, ids)` makes."""
    return lambda *a, **k: lambda texts, ids, seeds: images(texts, ids)


def plain(texts: Sequence[str]) -> Tensor:
    values = [int(hashlib.sha256(text.encode()).hexdigest()[:4], 16) / 2**16 for text in texts]
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)


def test_a_failing_prompt_is_an_error_and_the_others_are_drawn(
    tiny: Path, tmp_path: Path, tiny_clip: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(texts: Sequence[str], ids: Sequence[str]) -> Tensor:
        if "0005" in ids:
            raise RuntimeError("this prompt breaks the model")
        return plain(texts)

    path = run.run(settings(tiny, tmp_path), show=False, make=stub(draw))
    assert path
    records = Records.load(path)
    bad = records.frame[records.frame["error"].notna()]
    assert bad["id"].tolist() == ["0005"]
    assert "this prompt breaks the model" in bad["error"].iloc[0]
    assert bad["score.shapes/clip"].isna().all()
    assert not records.complete
    assert row(tmp_path)["complete"] == "False"
    assert row(tmp_path)["shapes/clip n"] == str(N - 1)

    run.run(settings(tiny, tmp_path), show=False, make=stub(lambda texts, ids: plain(texts)))
    assert row(tmp_path)["complete"] == "True", "errors are tried again"


def test_a_batch_too_big_for_memory_is_halved_and_says_so(
    tiny: Path, tmp_path: Path, tiny_clip: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(texts: Sequence[str], ids: Sequence[str]) -> Tensor:
        if len(texts) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return plain(texts)

    path = run.run(settings(tiny, tmp_path), show=False, make=stub(draw))
    assert path
    records = Records.load(path)
    assert records.complete
    assert set(records.frame["batch"]) == {2}
    assert row(tmp_path)["split_batches"] == str(N - N % 4)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("no memory for") == 1, "what did not fit once is not tried again"


def test_nan_images_and_scores_are_errors_not_numbers(
    tiny: Path, tmp_path: Path, tiny_clip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(texts: Sequence[str], ids: Sequence[str]) -> Tensor:
        images = plain(texts).clone()
        images[[i for i, each in enumerate(ids) if each == "0001"]] = float("nan")
        return images

    def scored(self: Any, pixels: Any, texts: Sequence[str]) -> Tensor:
        bad = suite().prompts[2].text
        return torch.tensor([float("nan") if text == bad else 1.0 for text in texts])

    monkeypatch.setattr(scorers.Scorer, "_scores", scored)
    path = run.run(settings(tiny, tmp_path), show=False, make=stub(draw))
    assert path
    frame = Records.load(path).frame
    errors = frame.set_index("id")["error"].dropna()
    assert set(errors.index) == {"0001", "0002"}
    assert "NaN" in errors["0001"]
    assert "nan" in errors["0002"]
    assert frame["score.shapes/clip"].isna().sum() == 2


def test_a_scorer_that_raises_spoils_its_own_column_only(
    tiny: Path, tmp_path: Path, tiny_clip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = scorers.Scorer._scores

    def scored(self: Any, pixels: Any, texts: Sequence[str]) -> Tensor:
        if self.protocol == "shapes/oracle":
            raise RuntimeError("no oracle today")
        return original(self, pixels, texts)

    monkeypatch.setattr(scorers.Scorer, "_scores", scored)
    path = run.run(settings(tiny, tmp_path, metrics=("shapes/clip", "shapes/oracle")), show=False)
    assert path
    frame = Records.load(path).frame
    assert frame["score.shapes/clip"].notna().all()
    assert frame["score.shapes/oracle"].isna().all()
    assert frame["error"].str.contains("shapes/oracle: RuntimeError: no oracle today").all()


@pytest.mark.parametrize("naming", ["id", "tail", "number"])
def test_images_of_others_are_scored(tiny_clip: None, tmp_path: Path, naming: str) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "theirs"
    first = int(naming == "tail")
    folder.mkdir()
    for i, prompt in enumerate(suite().prompts[:-1]):
        pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(
            folder / (f"{i}.png" if naming == "number" else f"{int(prompt.id) + first:04d}.png")
        )
    (folder / ("3.png" if naming == "number" else f"{3 + first:04d}.png")).write_bytes(b"")
    asked = suite()
    if first:  # what `parti/0001` is in a folder that is given without `parti`
        renamed = tuple(replace(prompt, id=f"small/{int(prompt.id) + 1:04d}") for prompt in asked.prompts)
        asked = replace(asked, prompts=renamed)
    given = settings(Path("theirs"), tmp_path, suite=asked, images=folder, metrics=("shapes/clip",))
    path = run.run(given, show=False)
    assert path
    records = Records.load(path)
    errors = records.frame.set_index("id")["error"].dropna()
    assert set(errors.index) == {asked.prompts[3].id, asked.prompts[-1].id}
    assert records.frame["score.shapes/clip"].notna().sum() == N - 2
    assert not records.complete
    with Image.open(folder / ("0.png" if naming == "number" else f"{first:04d}.png")) as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    expected = scorers.load("shapes/clip").score(pixels[None], [suite().prompts[0].text]).item()
    assert records.frame["score.shapes/clip"].iloc[0] == pytest.approx(expected, abs=1e-4)


def test_an_image_of_another_size_does_not_cost_the_scores_of_others(tiny_clip: None, tmp_path: Path) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "theirs"
    folder.mkdir()
    for i, prompt in enumerate(suite().prompts):
        pixels = rng.integers(0, 255, (32, 32 if i else 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{prompt.id}.png")
    path = run.run(settings(Path("theirs"), tmp_path, images=folder), show=False)
    assert path
    records = Records.load(path)
    assert records.frame["score.shapes/clip"].notna().tolist() == [False] + [True] * (N - 1)
    measured = records.meta["distribution"]["fd-shapes"]
    assert np.isnan(measured["value"])
    assert measured["note"]
    assert not records.complete


def test_what_makes_an_image_another_one(
    tiny: Path, tmp_path: Path, tiny_clip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model(name: str, **recipe: Any) -> Settings:
        shutil.copytree(tiny, tmp_path / name)
        content = {"steps": 1, "timesteps": [625], "guidance_scale": 1.0} | recipe
        (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump(content))
        return settings(tmp_path / name, tmp_path)

    usual = model("usual")
    another = model("another")
    weights = tmp_path / "another" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    others = {
        "guidance": model("guided", guidance_scale=3.0),
        "timesteps": model("earlier", timesteps=[500]),
        "sampler": model("best", sampler={"name": "best_of", "n": 2, "scorer": "shapes/clip"}),
        "weights": another,
        "batch": replace(usual, batch=8),
        "precision": replace(usual, dtype="bf16"),
    }
    identities = {name: run.identity(each) for name, each in {"usual": usual, **others}.items()}
    assert run.identity(model("same")) == identities["usual"]
    for part in ("versions", "processor"):
        with monkeypatch.context() as changed:
            changed.setattr(run.environment, part, lambda *_: "another")
            identities[part] = run.identity(usual)
    assert len({str(each) for each in identities.values()}) == len(identities)


def test_scores_are_kept_by_the_scorers_weights(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "other")
    weights = tmp_path / "other" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    kept = [run._kept_as(scorers.load("shapes/clip", weights=str(x)), "cpu") for x in (clip_folder, tmp_path / "other")]
    assert kept[0] != kept[1]
    assert kept[0] == run._kept_as(scorers.load("shapes/clip", weights=str(clip_folder)), "cpu")


def test_what_a_scorer_leans_on_is_part_of_what_its_scores_are_kept_under(real_scorers: Hub) -> None:
    for name, leans_on in {
        "shapes/oracle": {"prompts/shapes/oracle.py", "prompts/shapes/taste.py", "evaluate/scorers/shapes.py"},
        "geneval": {"evaluate/scorers/_geneval.py", "evaluate/scorers/_mask2former.py", "evaluate/preprocess.py"},
    }.items():
        files = {"/".join(file.parts[-3:]) for file in run._code_of(scorers.load(name))}
        assert all(any(file.endswith(each) for file in files) for each in leans_on), (name, files)


def test_a_metric_that_fails_in_the_end_costs_no_score(
    tiny_clip: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs").mkdir()
    for i in range(N):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / "theirs" / f"{i}.png")

    def compute(self: Any) -> None:
        raise SyntaxError("broken PNG file")

    from evaluate.distribution.frechet import FrechetMetric
    from evaluate.distribution.samples import SampleMetric

    for kind in (FrechetMetric, SampleMetric):
        monkeypatch.setattr(kind, "compute", compute)
    path = run.run(settings(Path("theirs"), tmp_path, images=tmp_path / "theirs"), show=False)
    assert path
    records = Records.load(path)
    assert records.frame["score.shapes/clip"].notna().all()
    assert records.meta["distribution"]["fd-shapes"]["note"] == "broken PNG file"


def test_scorers_that_do_not_fit_together_are_named(
    tiny_clip: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "theirs" / "0.png")

    def full(device: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def load(name: str, **_: Any) -> scorers.Scorer:
        scorer = scorers.load(name)
        monkeypatch.setattr(scorer, "to", full)
        return scorer

    given = settings(Path("theirs"), tmp_path, images=tmp_path / "theirs", metrics=("shapes/oracle", "shapes/facts"))
    with pytest.raises(UserError, match="shapes/oracle and shapes/facts: not enough memory on cpu for all at once"):
        run.run(given, show=False, load=load)


def test_a_process_of_torchrun_has_its_part_of_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert _shard("2/3") == (1, 3)
    parts = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for text in ("1/3", "2/3", "3/3"):
        for rank in ("0", "1"):
            monkeypatch.setenv("RANK", rank)
            parts.append(_shard(text))
    assert parts == [(i, 6) for i in range(6)]


def test_a_leaderboard_replaces_what_the_same_command_made_of_the_same_things(tmp_path: Path) -> None:
    board = tmp_path / "board.csv"
    usual = dict.fromkeys(leaderboard.FIXED, "x") | {"m": "1", "m weights": "w", "m reference": "r"}
    key = ["command", "model_sha256", "suite_sha256", "recipe", "hardware", "versions", "m weights", "m reference"]
    for name in key:
        leaderboard.upsert(board, usual | {name: "another"})
    for value in ("1", "2"):
        leaderboard.upsert(board, usual | {"m": value})
    rows = read_csv(board)
    assert len(rows) == len(key) + 1
    assert [row["m"] for row in rows if all(row[name] == usual[name] for name in key)] == ["2"]


def test_what_another_version_said_of_an_image_is_not_taken_for_this_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs").mkdir()
    for i in range(N):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / "theirs" / f"{i}.png")
    given = settings(Path("theirs"), tmp_path, images=tmp_path / "theirs", metrics=("shapes/oracle",))
    scored, original = itertools.count(), scorers.Scorer._scores
    monkeypatch.setattr(scorers.Scorer, "_scores", lambda *each: (next(scored), original(*each))[1])
    for blocks, version in ((6, "today"), (0, "today"), (6, "tomorrow")):
        monkeypatch.setattr(run.environment, "versions", lambda *_, said=version: said)
        before = next(scored)
        assert run.run(given, show=False)
        assert next(scored) - before - 1 == blocks


def test_images_that_others_numbered_from_1_are_not_scored_by_the_next_prompt(tmp_path: Path) -> None:
    for i in range(1, N + 1):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match="numbered from 1; number them from 0"):
        existing_images(tmp_path, suite().prompts, seeds=1)
    with pytest.raises(UserError, match="numbered from 1; number them from 0"):  # the last ones are not there yet
        existing_images(tmp_path, suite(2 * N).prompts, seeds=1)
    ids = [Prompt(f"s/{i:04d}", str(i), {}) for i in range(1, 1201)]  # of which 1000 and more are written alike
    (tmp_path / "1000.png").touch()
    (tmp_path / "1200.png").touch()
    with pytest.raises(UserError, match="numbered from 1; number them from 0"):
        existing_images(tmp_path, ids, seeds=1)
    Image.new("RGB", (32, 32)).save(tmp_path / "02.png")
    with pytest.raises(UserError, match="two images are number 2"):
        existing_images(tmp_path, suite().prompts, seeds=1)


@pytest.mark.slow
def test_two_processes_lose_no_row(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write_rows, args=(tmp_path / "board.csv", first)) for first in (0, 20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    rows = read_csv(tmp_path / "board.csv")
    assert {each["x"] for each in rows} == {str(i) for i in range(40)}
    assert {each["model"] for each in rows} == {f"=model {i}" for i in range(40)}
    raw = (tmp_path / "board.csv").read_text()
    assert not any(cell.startswith(("=", "+", "-", "@")) for line in raw.splitlines()[1:] for cell in line.split(","))


def test_a_table_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "board.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not a leaderboard"):
        leaderboard.upsert(path, dict.fromkeys(leaderboard.FIXED, "x"))
    assert path.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": ["shapes/base", "shapes/base"]}, "two models"),
        ({"models": ["shapes/base", "shapes/bass"]}, "shapes/bass: no such"),
        ({"shard": "4/3"}, "--shard 4/3"),
        ({"dtype": "fp8"}, "--dtype fp8"),
        ({"device": "cuda:0"}, "no such GPU"),
        ({"device": "gpu"}, "--device gpu: no such device"),
    ],
)
def test_options_that_cannot_be_meant(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    if "device" in changes and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    given: dict[str, Any] = {
        "models": ["shapes/base"], "metrics": (), "prompts": None, "images": None, "limit": 3, "seed": 0,
        "per_prompt": 1,
        "batch": 4, "dtype": "fp32", "device": None, "output": tmp_path, "shard": "1/1",
    }  # fmt: skip
    models = (given | changes).pop("models")
    with pytest.raises(UserError, match=said):
        from_options(
            "shapes",
            models,
            **{key: value for key, value in (given | changes).items() if key not in ("models", "metrics")},
            metrics=(),
        )


def test_a_scorer_short_of_memory_goes_on_with_halves(
    tiny: Path, tmp_path: Path, tiny_clip: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run.run(settings(tiny, tmp_path / "whole"), show=False)
    original = scorers.Scorer._scores

    def scored(self: Any, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        if len(texts) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return original(self, pixels, texts)

    monkeypatch.setattr(scorers.Scorer, "_scores", scored)
    path = run.run(settings(tiny, tmp_path / "short"), show=False)
    assert whole
    assert path
    a, b = (Records.load(each).frame["score.shapes/clip"].to_numpy() for each in (whole, path))
    np.testing.assert_allclose(a, b, atol=1e-4)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("shapes/clip: no memory for 4 at once; continuing with 2") == 1


def test_metrics_are_known_by_family_and_by_name(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "prompts": None, "images": None, "limit": None, "seed": 0, "per_prompt": 1, "batch": 4, "dtype": "fp32",
        "device": "cpu", "output": tmp_path, "shard": "1/1",
    }  # fmt: skip
    (asked,) = from_options(
        "shapes", ["shapes/base"], ["hpsv2", "aesthetic", "fd-shapes"], weights=["hpsv2=a/b"], **given
    )
    assert asked.metrics == ("hpsv2.1/aa", "aesthetic/v2", "fd-shapes")
    assert asked.weights == {"hpsv2.1/aa": "a/b"}
    for metrics, weights, said in ((["hpsv9"], [], "did you mean"), (["hpsv2"], ["fid=x"], "METRIC=PATH")):
        with pytest.raises(UserError, match=said):
            from_options("shapes", ["shapes/base"], metrics, weights=weights, **given)
    for name in USUAL:
        assert name in scorers.variants()
    (usual,) = from_options("shapes", ["shapes/base"], [], weights=(), **given)
    assert usual.metrics == suites.load("shapes").metrics
    for name in suites.names():
        assert set(suites.card(name).metrics) <= {*scorers.variants(), *distribution.variants()}


def test_prompts_that_repeat_others_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.txt"
    given: dict[str, Any] = {
        "prompts": None, "images": None, "limit": None, "seed": 0, "per_prompt": 1, "batch": 4, "dtype": "fp32",
        "device": "cpu", "output": tmp_path, "shard": "1/1",
    }  # fmt: skip
    for texts, told in ((["a", "b", "c"], False), (["a", "b", "a", "a"], True)):
        path.write_text("\n".join(texts))
        from_options(str(path), ["shapes/base"], ["shapes/clip"], **given)
        said = " ".join("".join(capsys.readouterr()).split())
        assert ("2 of 4 prompts repeat others word for word" in said) == told
    from_options("shapes", ["shapes/base"], [], **given)
    assert "repeat" not in "".join(capsys.readouterr())


def test_a_full_disk_ends_in_a_sentence_and_loses_nothing(
    whole: tuple[pd.DataFrame, dict[str, str]],
    tiny: Path,
    tmp_path: Path,
    tiny_clip: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls = Image.Image.save, itertools.count()

    def save(*arguments: Any, **options: Any) -> None:
        if next(calls) >= 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", save)
        with pytest.raises(UserError, match="No space left on device"):
            run.run(settings(tiny, tmp_path), show=False)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png") if (path.parent / "index.json").is_file()}
    assert kept
    assert run.run(settings(tiny, tmp_path), show=False)
    assert row(tmp_path) == whole[1]
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--model", "shapes/base", "--limit", "0"], 2, "--limit"),
        (["--model", "shapes/base", "--metric", "hpsv9"], 2, "did you mean"),
        (["--model", "./nowhere"], 2, "no such folder"),
        (["--model", "theirs", "--images", "nowhere"], 2, "no such folder"),
        (["--model", "theirs", "--images", "EMPTY", "--metric", "shapes/oracle", "--limit", "2"], 2, "no images there"),
        (["--model", "theirs", "--images", "HALF", "--metric", "shapes/oracle", "--limit", "2"], 4,
        "1 of 2 images have errors"),
    ],
)  # fmt: skip
def test_exit_codes(
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("EMPTY", "HALF"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "HALF" / "0.png")
    given = [str(tmp_path / each) if each.isupper() else each for each in arguments]
    monkeypatch.setattr("sys.argv", ["evaluate", "run", "--suite", "shapes", "--output", str(tmp_path / "out"), *given])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == code
    output = capsys.readouterr()
    assert said in " ".join((output.out + output.err).split())

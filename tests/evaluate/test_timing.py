"""Timing: time goes to the stage that takes it, and weights that are drawn are all there."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from clock import Hours

from evaluate import cli, pipelines
from evaluate.bench import timing
from evaluate.pipelines import random_init
from evaluate.pipelines.fast import tune
from evaluate.pipelines.recipe import Recipe
from evaluate.results.csv_io import read_csv
from prompts.io.errors import UserError

RECIPE = Recipe(steps=2, guidance_scale=1.0)


@pytest.fixture(scope="module")
def configs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline without its weights."""
    folder = tmp_path_factory.mktemp("models") / "configs"
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "recipe.yaml").write_text("steps: 2\nguidance_scale: 1.0\n")
    return folder


@pytest.mark.parametrize(("stage", "calls"), [("text", 1), ("denoiser", 2), ("vae", 1)])
def test_time_goes_to_the_stage_that_takes_it(tiny: Path, hours: Hours, stage: str, calls: int) -> None:
    pipeline = pipelines.load(str(tiny))
    quick = timing.time_pipeline(pipeline, RECIPE, batch=4, repeats=2)
    (module,) = timing.stages(pipeline)[stage]
    forward = module.forward

    def slow(*args: Any, **options: Any) -> Any:
        hours.sleep(0.125)
        return forward(*args, **options)

    module.forward = slow
    slowed = timing.time_pipeline(pipeline, RECIPE, batch=4, repeats=2)
    for name in ("text", "denoiser", "vae", "other"):
        assert getattr(quick, name) == 0
        assert getattr(slowed, name) == (calls * 0.125 * timing.IMAGES / 4 if name == stage else 0), name
    assert slowed.least == slowed.total == slowed.most == calls * 0.125 * timing.IMAGES / 4
    assert slowed.peak_mib > 50


def test_hooks_are_taken_off_again(tiny: Path) -> None:
    pipeline = pipelines.load(str(tiny))
    timing.time_pipeline(pipeline, RECIPE, batch=1, repeats=1)
    for modules in timing.stages(pipeline).values():
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_calls_that_warm_up_are_not_counted(hours: Hours) -> None:
    naps = iter([8.0, 16.0, 4.0, 1.0, 2.0])
    spread = timing.time_call(lambda: hours.sleep(next(naps)), repeats=3)
    assert spread == (2.0, 1.0, 4.0)


def test_weights_are_drawn_and_never_zero(configs: Path, tiny: Path) -> None:
    pipeline, real = (
        random_init.random_pipeline(str(configs), dtype=torch.float32, device="cpu"),
        pipelines.load(str(tiny)),
    )
    for name in ("unet", "vae", "text_encoder"):
        drawn, own = (getattr(each, name) for each in (pipeline, real))
        assert {key: value.shape for key, value in drawn.state_dict().items()} == {
            k: v.shape for k, v in own.state_dict().items()
        }
        assert all(parameter.count_nonzero() == parameter.numel() for parameter in drawn.parameters()), name
        assert not drawn.training
    again = random_init.random_pipeline(str(configs), dtype=torch.float32, device="cpu")
    assert torch.equal(pipeline.unet.conv_in.weight, again.unet.conv_in.weight)
    half = random_init.random_pipeline(str(configs), dtype=torch.bfloat16, device="cpu")
    assert half.unet.dtype == half.vae.dtype == torch.bfloat16
    image = pipeline(["a circle"], output_type="pt", **RECIPE.call()).images
    assert image.isfinite().all()
    assert image.std() > 0


def test_a_missing_config_is_said(configs: Path, tmp_path: Path) -> None:
    for gone in ("model_index.json", "unet/config.json", "tokenizer"):
        folder = tmp_path / gone.replace("/", "-")
        shutil.copytree(configs, folder)
        shutil.rmtree(folder / gone) if (folder / gone).is_dir() else (folder / gone).unlink()
        with pytest.raises(UserError) as caught:
            random_init.random_pipeline(str(folder), dtype=torch.float32, device="cpu")
        assert str(folder) in str(caught.value)


def test_channels_last_leaves_convolutions_of_videos_as_they_are() -> None:
    decoder = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Conv3d(2, 3, 3), torch.nn.Linear(2, 3))
    vae = torch.nn.Module()
    vae.decoder = decoder
    before = [parameter.clone() for parameter in decoder.parameters()]
    tune(SimpleNamespace(vae=vae), compiled=False, channels_last=True)
    assert decoder[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert decoder[1].weight.is_contiguous()
    assert all(a.equal(b) for a, b in zip(before, decoder.parameters(), strict=True))


def test_the_command_keeps_one_row_a_command(configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["evaluate", "time", "--model", str(configs), "--random-weights", "--device", "cpu", "--repeats", "1"]
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    for *more, batch in (["2"], ["2"], ["--compile", "--channels-last", "2"], ["1"]):
        monkeypatch.setattr("sys.argv", [*arguments, *more, "--batch", batch, "--output", str(tmp_path)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
    rows = read_csv(tmp_path / "timings.csv")
    assert [row["batch"] for row in rows] == ["2", "2", "1"]
    assert [row["compiled"] for row in rows] == [row["channels_last"] for row in rows] == ["False", "True", "False"]
    assert "--compile --channels-last" in rows[1]["command"]
    assert set(compiled) == {"BasicTransformerBlock", "UpDecoderBlock2D"}, "the network's blocks and the decoder's"
    for row in rows:
        assert row["weights"] == "random"
        assert row["warmup"] == "2"
        assert float(row["total_s"]) > float(row["denoiser_s"]) > 0
        assert all(row[name] for name in ("recipe", "hardware", "versions", "command", "peak_mib"))
    (tmp_path / "timings.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="move it away"):
        timing.record(dict(rows[0]), tmp_path / "timings.csv")
    monkeypatch.setattr(timing, "measure", lambda settings: pytest.fail("an hour has been taken"))
    monkeypatch.setattr("sys.argv", [*arguments, "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2


@pytest.mark.parametrize("change", [{"dtype": "int8"}, {"device": "cuda"}])
def test_what_cannot_be_timed_is_refused(configs: Path, change: dict[str, str]) -> None:
    if change.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    settings = {
        "model": str(configs),
        "random_weights": True,
        "device": "cpu",
        "dtype": "fp32",
        "batch": 1,
        "repeats": 1,
    }
    with pytest.raises(UserError, match=next(iter(change))):
        timing.measure(timing.TimingSettings(**(settings | change)))  # type: ignore[arg-type]

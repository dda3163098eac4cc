"""What a run leaves and what `align export` makes of it: pipelines and LoRAs that stock diffusers loads, and a card that tells no secrets."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import tiny_scorers
import torch
import yaml
from hub import Hub
from safetensors.torch import load_file
from tiny import SMALL_RUN
from torch import Tensor

from align import cli, families, runs
from align import config as configs
from align.config import TrainConfig
from evaluate import lora as loras
from evaluate import pipelines

Run = Callable[..., tuple[int, str]]
FAMILIES = sorted(tiny_families.FAMILIES)
#: A prompt that would spoil a page if it were taken for Markdown, HTML, YAML or Python.
NASTY = """```<script>alert("x")</script> `a` | [b](c) ' --- {d} \\"""
LORA = {"rank": 3, "alpha": 6.0, "targets": ["to_q", "to_v", "conv1", "proj_in", "net.2"]}


@pytest.fixture
def align(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command and return its exit code and all that it wrote."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["align", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "1000")
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, "".join(capsys.readouterr())

    return call


def refused(result: tuple[int, str], *words: str) -> None:
    code, text = result
    assert code == 2, text
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("align: ")]
    for word in words:
        assert word in line, line


@pytest.fixture(scope="module")
def trained(published: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with LoRA of every family, from another network than the reference, both on the hub."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "prompts.txt").write_text(NASTY + "\na small circle\ntwo squares\n", encoding="utf-8")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        tiny_scorers.shrink(patch, published)
        for family in FAMILIES:
            found[family] = train(family, published, folder)
    return found


def train(family: str, published: Hub, folder: Path) -> Path:
    name = families.load(family).network
    for seed, role in enumerate(("reference", "start")):
        made = tiny_families.pipeline(family, folder / family / role, seed=seed)
        place = published.folder(f"tests-of-export/{family}-{role}", str(seed) * 40)
        if role == "reference":
            tiny_families.save(made, place)
        else:
            torch.save(getattr(made, name).state_dict(), place / "bare.bin")
    content = SMALL_RUN | {
        "family": family, "reference": f"tests-of-export/{family}-reference@{'0' * 40}", "batch_size": 4, "steps": 2,
        "initial": f"tests-of-export/{family}-start/bare.bin@{'1' * 40}", "lora": LORA, "held_out": {}, "report": 4, "method": "di++",
        "prompts": str(folder / "prompts.txt"), "rewards": [{"scorer": "pickscore", "scale": 100}],
        "generator": {"noise_scale": "unit" if family == "sdxl" else "sigma"}, "student": {"learning_rate": 0.03},
    }  # fmt: skip
    config = configs.validate(TrainConfig, content, family)
    assert runs.train(config, folder / family / "run", resume=False, preset="shapes-di")
    return folder / family / "run"


def draw(pipeline: Any, folder: Path) -> Tensor:
    """Pictures by a stock pipeline, called as the folder's recipe says."""
    pipeline.set_progress_bar_config(disable=True)
    return pipelines.draw(pipeline, pipelines.recipe(str(folder)), ["a circle", "two squares"], seed=0)


def started(run: Path) -> Any:
    """What the student started from: the reference's pipeline with the bare file's network, and the run's scheduler."""
    from diffusers import DiffusionPipeline

    config = configs.validate(TrainConfig, configs.read_yaml(run / "config.yaml"), "run")
    reference, start = (DiffusionPipeline.from_pretrained(run / "checkpoint") for _ in range(2))
    name = families.load(config.family).network
    from align.start import load_into

    load_into(getattr(start, name), str(config.initial), name)
    assert reference.scheduler.config == start.scheduler.config
    return start


def lay(pipeline: Any, folder: Path) -> Any:
    """Load the folder's LoRA with stock diffusers, or where it has no way for the family, with peft."""
    if hasattr(pipeline, "load_lora_weights"):
        pipeline.load_lora_weights(folder)
        return pipeline
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    tensors = {
        key.removeprefix("transformer."): value for key, value in load_file(folder / "pytorch_lora_weights.safetensors").items()
    }
    targets = sorted({key.partition(".lora_")[0] for key in tensors})
    inject_adapter_in_model(LoraConfig(r=3, lora_alpha=3, target_modules=targets), pipeline.transformer)
    outcome = set_peft_model_state_dict(pipeline.transformer, tensors)
    assert not outcome.unexpected_keys
    return pipeline


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lora_over_its_start_draws_what_the_checkpoint_draws(trained: dict[str, Path], family: str) -> None:
    from diffusers import DiffusionPipeline

    checkpoint = trained[family] / "checkpoint"
    merged = draw(DiffusionPipeline.from_pretrained(checkpoint), checkpoint)
    start = started(trained[family])
    assert (draw(start, checkpoint) - merged).abs().max() > 1e-2
    assert (draw(lay(start, checkpoint), checkpoint) - merged).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_lora_is_a_model_of_its_own(trained: dict[str, Path], tmp_path: Path, align: Run, family: str) -> None:
    code, said = align("export", trained[family], "--lora", "--dtype", "fp32", "--output", tmp_path / "lora")
    assert code == 0, said
    names = {path.name for path in (tmp_path / "lora").iterdir()}
    assert names == {"pytorch_lora_weights.safetensors", "recipe.yaml", "README.md"}
    checkpoint = trained[family] / "checkpoint"
    mine, theirs = (draw(pipelines.load(str(folder)), folder) for folder in (tmp_path / "lora", checkpoint))
    assert (mine - theirs).abs().max() < 1e-5
    assert pipelines.digest(str(tmp_path / "lora"))


# ---- the hub -------------------------------------------------------------------------------------------------------------

TOKEN = "hf_DoNotTellAnybodyWhatThisIsPlease12"


@pytest.fixture
def account(published: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """The hub, where TOKEN may write to `me`; with an empty cache."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(published, "tokens", {TOKEN: {"me"}})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    published.commits.clear()
    yield published
    shutil.rmtree(published.root / "me", ignore_errors=True)


def test_what_is_pushed_comes_back_and_draws(
    trained: dict[str, Path], tmp_path: Path, align: Run, account: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    for name, options in {"whole": [], "low-rank": ["--lora", "--private"]}.items():
        code, said = align("export", trained["sdxl"], *options, "--output", tmp_path / name, "--push-to-hub", f"me/{name}")
        assert code == 0, said
        assert f"{account.url}/me/{name}" in said
        assert "NotTell" not in said
        fetched = Path(snapshot_download(f"me/{name}"))
        for kept in (path for path in (tmp_path / name).rglob("*") if path.is_file()):
            assert (fetched / kept.relative_to(tmp_path / name)).read_bytes() == kept.read_bytes()
    assert [name for name, _ in account.commits] == ["me/whole", "me/low-rank"]
    assert account.private == {"me/low-rank"}
    stock = DiffusionPipeline.from_pretrained("me/whole")
    whole = draw(stock, tmp_path / "whole")
    low = Path(snapshot_download("me/low-rank"))
    assert (draw(pipelines.load(str(low)), low) - whole).abs().max() < 0.02
    code, said = align("export", trained["sdxl"], "--push-to-hub", "me/whole")  # once more, without a folder of its own
    assert code == 0, said
    assert len(account.commits) == 3
    for path in (path for folder in (trained["sdxl"], tmp_path, account.root / "me") for path in folder.rglob("*")):
        assert not path.is_file() or b"NotTell" not in path.read_bytes(), path


def test_a_push_that_fails_says_why_and_tells_no_token(
    trained: dict[str, Path],
    tmp_path: Path,
    align: Run,
    account: Hub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's own patience

    def fails(*words: str, name: str = "me/model") -> None:
        result = align("export", trained["sd15"], "--lora", "--push-to-hub", name)
        refused(result, name, *words)
        assert "NotTell" not in result[1]

    for name in ("model", "me/mine/model", "datasets/me/model", "me/", "https://huggingface.co/me/model", "me/a b"):
        fails("not of the form OWNER/NAME", name=name)
    fails("may not write", "right to write", name="you/model")
    with monkeypatch.context() as patch:
        patch.setattr(account, "tokens", {})
        fails("does not know the token", "hf auth login")
    with monkeypatch.context() as patch:
        patch.setattr(account, "down", True)
        fails("500", "try again")
    with monkeypatch.context() as patch:
        patch.delenv("HF_TOKEN")
        fails("no token", "hf auth login")
    for endpoint in ("http://127.0.0.1:1", f"http://user:{TOKEN}@127.0.0.1:1", f"http://user:{TOKEN}@host:port", f"://{TOKEN}"):
        with monkeypatch.context() as patch:
            patch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
            fails("not pushed")
    assert not account.commits
    assert "NotTell" not in caplog.text

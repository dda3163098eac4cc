"""Bases of LoRA roles in 8 and 4 bits: how far what they compute is from the whole ones, and what they take."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMALL_RUN, save_tiny
from torch import nn

from align.config.train import TrainConfig
from align.export.pipeline import copy as copy_checkpoint
from align.memory import estimate as memory
from align.networks import quantized
from align.networks.initial import LORA
from align.networks.quantized import QuantizedLinear, quantize
from align.options import dump
from align.run_folder import read_run
from align.training.loop import train
from evaluate.weights import read
from prompts.io.errors import UserError
from prompts.io.validate import validate

#: bits -> how far a product is from the whole one's, of its size, and how large the weights are, of float32's.
BOUNDS = {"8bit": (0.02, 0.27), "4bit": (0.15, 0.15)}


def make(tiny: Path, **changes: Any) -> TrainConfig:
    return validate(TrainConfig, SMALL_RUN | {"reference": str(tiny)} | changes, "test")


@pytest.mark.parametrize("bits", BOUNDS)
def test_a_product_and_its_gradient_are_those_of_the_rounded_weights(bits: Any) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(96, 64), torch.randn(5, 96, requires_grad=True)
    rounded = QuantizedLinear(layer, bits)
    expected = x @ rounded.weight.T + layer.bias
    torch.testing.assert_close(rounded(x), expected)
    direction = torch.randn_like(expected)
    (mine,) = torch.autograd.grad((rounded(x) * direction).sum(), x)
    torch.testing.assert_close(mine, direction @ rounded.weight)
    bound, share = BOUNDS[bits]
    whole = layer(x)
    assert 0 < (rounded(x) - whole).norm() / whole.norm() < bound
    assert rounded.codes.nbytes + rounded.scales.nbytes < share * layer.weight.nbytes
    with torch.autocast("cpu", torch.bfloat16):
        assert rounded(x).dtype == torch.bfloat16


def test_the_weights_of_a_state_dict_are_whole() -> None:
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32))
    before = copy.deepcopy(network.state_dict())
    quantize(network, ("1",), "8bit")
    after = network.state_dict()
    assert after.keys() == before.keys() and after["0.weight"].equal(before["0.weight"])
    assert not after["1.weight"].equal(before["1.weight"])
    torch.testing.assert_close(after["1.weight"], before["1.weight"], rtol=0, atol=0.01)
    with pytest.raises(UserError, match=r"lora.base 4bit: the network has no linear layer under lora.target_modules"):
        quantize(network, ("nowhere",), "4bit")


@pytest.mark.parametrize(("bits", "bound"), [("8bit", 0.05), pytest.param("4bit", 0.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("initial", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_is_near_the_one_on_whole_weights(tmp_path: Path, bits: str, bound: float, initial: bool) -> None:
    """How far the adapters come apart in four steps, of what they have moved."""
    start = {"initial": str(save_tiny(tmp_path / "other", seed=1))} if initial else {}
    tiny = save_tiny(tmp_path / "tiny")
    adapters = {}
    for base in (None, bits):
        lora = {"rank": 4, "alpha": 4.0, "base": base}
        config = make(tiny, method="di*", lora=lora, rewards=[{"scorer": "shapes/clip", "scale": 0.5}], **start)
        folder = tmp_path / str(base)
        folder.mkdir()
        assert train(config, folder, show=False)
        whole = read(folder / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors")
        assert not any("codes" in name or "scales" in name for name in whole)
        adapters[base] = read(folder / "checkpoint" / LORA)
    moved = sum(v.square().sum() for k, v in adapters[None].items() if "lora_B" in k).sqrt()
    apart = sum((v - adapters[bits][k]).square().sum() for k, v in adapters[None].items() if "lora_B" in k).sqrt()
    assert 0 < apart / moved < bound


@pytest.mark.slow
@pytest.mark.slow
def test_a_lora_over_rounded_weights_has_no_scores_of_theirs(tmp_path: Path) -> None:
    config = make(save_tiny(tmp_path / "tiny", channels=64), lora={"rank": 2, "alpha": 2.0, "base": "8bit"}, steps=1)
    run = tmp_path / "run"
    run.mkdir()
    assert train(config, run, show=False)
    (run / "config.yaml").write_text(dump(config))
    row = {"metric": "m", "start": 0.1, "result": 0.2, "mean": 0.1, "low": 0, "high": 1}
    rows = [row | {"win_rate": 0.5, "win_low": 0.1, "win_high": 0.9}]
    found = {"step": read_run(run)["step"], "n": 2, "seed": 0, "start": "x", "rows": rows}
    (run / "comparison.json").write_text(json.dumps(found))
    for lora in (False, True):
        folder = tmp_path / str(lora)
        copy_checkpoint(run / "checkpoint", folder, dtype=None, pipeline=None, lora=lora, scores=None, push_to=None)
        text = (folder / "README.md").read_text()
        assert "over a base in 8bit" in text
        assert ("## Scores" in text) == (not lora)


@pytest.mark.slow
def test_the_estimate_counts_them(tmp_path: Path) -> None:
    tiny = save_tiny(tmp_path / "tiny")
    quantized._levels.cache_clear()  # which another test may have left
    sizes = []
    for base in (None, "8bit", "4bit"):
        config = make(tiny, method="sim", lora={"rank": 4, "alpha": 4.0, "base": base})
        parts = memory.estimate(config, cuda=False).parts
        sizes.append(sum(size for name, size in parts.items() if "'s base" in name))
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    tiny = save_tiny(tmp_path / "tiny")
    with pytest.raises(UserError, match=r"lora.base 4bit cannot be sharded; set parallel to ddp"):
        make(tiny, lora={"rank": 4, "base": "4bit"}, parallel="fsdp2")

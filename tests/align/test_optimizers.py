"""8-bit Adam: what it computes, what it stores, and that a run on it resumes with the same bits."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMALL_RUN, save_tiny

from align.config.train import TrainConfig
from align.networks.optimizers import Optimizer, make_optimizer
from align.training import checkpoints as state
from align.training.loop import train
from evaluate import weights
from prompts.io.errors import UserError
from prompts.io.validate import validate

EIGHT = {name: {"name": "adam8bit", "learning_rate": 1e-4} for name in ("student", "assistant")}


def make(tiny: Path, **changes: Any) -> TrainConfig:
    return validate(TrainConfig, SMALL_RUN | {"reference": str(tiny)} | EIGHT | changes, "test")


def descend(name: str, steps: int = 60) -> tuple[float, torch.optim.Optimizer]:
    """How far from its minimum a quadratic of 64 x 128 unequal curvatures is, against where it began."""
    generator = torch.Generator().manual_seed(0)
    goal, curvature = (torch.randn(64, 128, generator=generator) for _ in range(2))
    parameter = torch.nn.Parameter(torch.zeros_like(goal))
    optimizer = make_optimizer(Optimizer(name=name, learning_rate=0.05, betas=(0.0, 0.999)), [parameter])  # type: ignore[arg-type]
    first = last = 0.0
    for step in range(steps):
        loss = (curvature.abs() * (parameter - goal) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (loss.item() if step == 0 else first), loss.item()
    return last / first, optimizer


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_eight_bits_descend_as_far_and_take_a_quarter(name: str) -> None:
    (full, whole), (eight, small) = descend(name), descend(f"{name}8bit")
    assert full < 0.1
    assert eight == pytest.approx(full, rel=0.1)
    assert eight != full

    def size(optimizer: torch.optim.Optimizer) -> int:
        return sum(
            value.nbytes for held in optimizer.state.values() for value in held.values() if torch.is_tensor(value)
        )

    assert size(small) < 0.3 * size(whole)


@pytest.mark.slow
def test_a_run_on_eight_bits_resumes_with_the_same_bits(tmp_path: Path) -> None:
    wide = save_tiny(tmp_path / "wide", channels=32)  # below 4,096 numbers bitsandbytes keeps 32 bits

    def network(folder: Path, steps: int, **options: Any) -> dict[str, torch.Tensor]:
        folder.mkdir(exist_ok=True)
        assert train(make(wide, steps=steps), folder, show=False, **options)
        return weights.read(folder / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors")

    whole = network(tmp_path / "whole", 4)
    network(tmp_path / "parts", 2)
    parts = network(tmp_path / "parts", 4, resume=True)
    assert all(whole[key].equal(parts[key]) for key in whole)
    _, saved = state.load_newest(tmp_path / "parts" / "state")  # type: ignore[misc]
    held = saved["optimizers"]["student"]["state"].values()
    kinds = {
        value.dtype
        for each in held
        for part in each.values()
        if isinstance(part, dict)
        for value in part.values()
        if torch.is_tensor(value)
    }
    assert torch.uint8 in kinds


@pytest.mark.parametrize("changes", [{"parallel": "fsdp2"}, {"precision": "fp64"}])
def test_what_eight_bits_do_not_go_with(tiny: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"works with neither parallel fsdp2 nor precision fp64; set it to adam$"):
        make(tiny, **changes)


def test_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        UserError, match=r"bitsandbytes is not installed; install 'onestep-align\[8bit\]', or set name to adamw$"
    ):
        make_optimizer(Optimizer(name="adamw8bit", learning_rate=1.0), [])


def test_weight_decay_is_what_the_name_says() -> None:
    with pytest.raises(UserError, match="adam8bit with weight_decay decays as AdamW does; set name to adamw8bit"):
        validate(Optimizer, {"name": "adam8bit", "learning_rate": 1e-4, "weight_decay": 0.1}, "test")
    validate(Optimizer, {"name": "adamw8bit", "learning_rate": 1e-4, "weight_decay": 0.1}, "test")

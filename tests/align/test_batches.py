"""Batches: every row's random numbers are its own, whoever draws them and whatever else is drawn."""

from typing import Any

import pytest
import torch

from align.data.batches import Draw, Source
from align.data.prompts import prompts as data
from evaluate.diffusion import Schedule, lognormal

SHAPE = (4, 3, 5)


def source(*, seed: int = 0, batch: int = 12, prompts: int = 7) -> Source:
    schedule = Schedule(torch.linspace(0.01, 20, 1000, dtype=torch.float64))
    return Source(prompts, SHAPE, batch, lognormal(schedule, mean=0.0, std=1.0), seed=seed)


def tensors(draw: Draw) -> tuple[torch.Tensor, ...]:
    return torch.as_tensor(draw.prompts), draw.z, draw.noise, draw.sigma


@pytest.mark.parametrize(("world", "chunks"), [(1, 1), (1, 4), (2, 3), (3, 1), (4, 3)])
def test_parts_are_the_whole_batch_to_the_bit(world: int, chunks: int) -> None:
    made, k = source(), 5
    parts = [tensors(made(k, rows=made.rows(rank, world, chunk, chunks))) for chunk in range(chunks) for rank in range(world)]
    for whole, pieces in zip(tensors(made(k)), zip(*parts, strict=True), strict=True):
        assert torch.cat(pieces).equal(whole)


def test_a_process_draws_its_own_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made, keys, noise = source(), [], data.pipelines.noise

    def counted(shape: Any, *, seed: int, key: str) -> torch.Tensor:
        keys.append(key)
        return noise(shape, seed=seed, key=key)

    monkeypatch.setattr(data.pipelines, "noise", counted)
    made(3, rows=made.rows(1, 2, 0, 3))
    assert keys == [f"3/{row}/{name}" for name in ("z", "diffusion") for row in (2, 3)]


def test_no_number_is_drawn_twice() -> None:
    draws = [source(seed=seed)(k) for seed in (0, 1) for k in (0, 1)]
    rows = [row.flatten() for draw in draws for each in (draw.z, draw.noise) for row in each]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows) == 96
    assert len({sigma.item() for draw in draws for sigma in draw.sigma}) == 48


def test_a_row_is_the_same_in_a_larger_batch_and_in_any_precision() -> None:
    small, large = source(batch=4)(0), source(batch=16)(0)
    assert small.z.equal(large.z[:4]) and small.sigma.equal(large.sigma[:4])
    exact = source()(2, torch.float64)
    assert exact.noise.dtype == exact.sigma.dtype == torch.float64
    assert exact.noise.float().equal(source()(2).noise) and exact.sigma.float().equal(source()(2).sigma)


def test_prompts_come_epoch_by_epoch_and_noise_is_standard_normal() -> None:
    made = source(batch=14)
    draws = [made(k) for k in range(100)]
    for draw in draws:  # two epochs a batch
        assert sorted(draw.prompts[:7]) == sorted(draw.prompts[7:]) == list(range(7))
    logs = torch.cat([draw.sigma for draw in draws]).log()
    for values in (torch.cat([draw.z for draw in draws]), torch.cat([draw.noise for draw in draws]), logs):
        n = values.numel()
        assert abs(values.mean()) < 4 / n**0.5
        assert abs(values.std() - 1) < 4 / (2 * n) ** 0.5

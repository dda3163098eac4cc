"""Batches: every row's random numbers are its own, whoever draws them and whatever else is drawn."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from align.data.batches import Batch, BatchSampler, NoiseLevelOptions
from evaluate import keyed
from evaluate.diffusion import NOISE_LEVELS, Schedule, lognormal
from prompts.io.errors import UserError

SHAPE = (4, 3, 5)


def texts(picks: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[str]]:
    return (
        {"text": torch.as_tensor(picks).float()[:, None]},
        {"text": torch.zeros(len(picks), 1)},
        [str(i) for i in picks],
    )


def sampler(*, seed: int = 0, size: int = 12, prompts: int = 7, **options: Any) -> BatchSampler:
    schedule = Schedule(torch.linspace(0.01, 20, 1000, dtype=torch.float64))
    return BatchSampler(texts, prompts, SHAPE, size, lognormal(schedule, mean=0.0, std=1.0), seed=seed, **options)


def whole(k: int, **options: Any) -> Batch:
    (batch,) = sampler(**options)(k)
    return batch


def tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
    numbers = torch.tensor([int(prompt) for prompt in batch.prompts])
    return numbers, batch.cond["text"], batch.noise("z"), batch.noise("diffusion"), batch.sigma


@pytest.mark.parametrize(("world", "chunks"), [(1, 1), (1, 4), (2, 3), (3, 1), (4, 3)])
def test_parts_are_the_whole_batch_to_the_bit(world: int, chunks: int) -> None:
    processes = [sampler(rank=rank, world=world, micro_batches=chunks)(5) for rank in range(world)]
    parts = [tensors(process[m]) for m in range(chunks) for process in processes]
    for together, pieces in zip(tensors(whole(5)), zip(*parts, strict=True), strict=True):
        assert torch.cat(pieces).equal(together)


def test_a_process_draws_its_own_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, noise = [], keyed.noise

    def counted(shape: Any, *, seed: int, key: str) -> torch.Tensor:
        keys.append(key)
        return noise(shape, seed=seed, key=key)

    monkeypatch.setattr(keyed, "noise", counted)
    batch = sampler(rank=1, world=2, micro_batches=3).draw(3, 0)
    assert not keys, "what nobody asks for is not drawn"
    for name in ("z", "diffusion", "z"):
        batch.noise(name)
    assert keys == [f"3/{row}/{name}" for name in ("z", "diffusion") for row in (2, 3)]


def test_what_is_asked_for_by_another_name_moves_nobody_elses_bits() -> None:
    one, other = whole(0), whole(0)
    other.noise("of an extension")
    assert one.noise("z").equal(other.noise("z"))
    part = other.part(slice(3, 5))
    for some, all_of_it in zip(tensors(part), tensors(one), strict=True):
        assert some.equal(all_of_it[3:5])


def test_no_number_is_drawn_twice() -> None:
    drawn = [whole(k, seed=seed) for seed in (0, 1) for k in (0, 1)]
    rows = [row.flatten() for batch in drawn for name in ("z", "diffusion") for row in batch.noise(name)]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows) == 96
    assert len({sigma.item() for batch in drawn for sigma in batch.sigma}) == 48


def test_a_row_is_the_same_in_a_larger_batch_and_in_any_precision() -> None:
    small, large = whole(0, size=4), whole(0, size=16)
    assert small.noise("z").equal(large.noise("z")[:4]) and small.sigma.equal(large.sigma[:4])
    exact, narrow = whole(2, dtype=torch.float64), whole(2)
    assert exact.noise("diffusion").dtype == exact.sigma.dtype == torch.float64
    assert exact.noise("diffusion").float().equal(narrow.noise("diffusion")) and exact.sigma.float().equal(narrow.sigma)


def test_prompts_come_epoch_by_epoch_and_noise_is_standard_normal() -> None:
    drawn = [whole(k, size=14) for k in range(100)]
    for batch in drawn:  # two epochs a batch
        numbers = [int(prompt) for prompt in batch.prompts]
        assert sorted(numbers[:7]) == sorted(numbers[7:]) == list(range(7))
    logs = torch.cat([batch.sigma for batch in drawn]).log()
    for values in (torch.cat([batch.noise(name) for batch in drawn]) for name in ("z", "diffusion")):
        n = values.numel()
        assert abs(values.mean()) < 4 / n**0.5
        assert abs(values.std() - 1) < 4 / (2 * n) ** 0.5
    assert abs(logs.mean()) < 4 / len(logs) ** 0.5
    assert abs(logs.std() - 1) < 4 / (2 * len(logs)) ** 0.5


def test_noise_levels_are_drawn_within_an_interval() -> None:
    every = torch.cat([batch.sigma for k in range(40) for batch in sampler()(k)])
    upper = torch.cat([batch.sigma for k in range(40) for batch in sampler(interval=lambda k, seed: (1.0, 3.0))(k)])
    within = (every >= 1) & (every <= 3)
    assert 0.2 < within.double().mean() < 0.6
    assert upper[within].equal(every[within]), "what is within is drawn as ever"
    assert upper.min() >= 1 and upper.max() <= 3 and len(upper.unique()) == len(upper)
    (far, *_) = sampler(interval=lambda k, seed: (100.0, 200.0))(0)
    assert far.sigma.tolist() == [100.0] * len(far.sigma)


def test_batches_without_a_number_are_the_same_otherwise() -> None:
    draws, numbered = sampler(), sampler()(5)
    draws.numbered = False
    (batch,), (other,) = draws(5), numbered
    assert batch.number is None and other.number == 5
    assert batch.sigma.equal(other.sigma) and batch.noise("z").equal(other.noise("z"))


def test_the_same_rows_meet_other_noise_afresh() -> None:
    draws = sampler(interval=lambda k, seed: (0.5, 3.0))
    (batch,) = draws(7)
    other = draws.afresh(batch)
    assert other.prompts == batch.prompts and other.number == batch.number and other.cond is batch.cond
    assert not torch.isin(other.noise("diffusion"), batch.noise("diffusion")).any()
    assert (other.sigma != batch.sigma).all() and ((other.sigma >= 0.5) & (other.sigma <= 3)).all()
    assert draws.afresh(batch).noise("diffusion").equal(other.noise("diffusion"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "uniform", "parameters": {"low": 20.5, "high": 980}}, "whole numbers 0 to 999"),
        ({"name": "uniform", "parameters": {"low": -20, "high": 980}}, "not -20 and 980"),
        ({"name": "uniform", "parameters": {"low": 20, "high": 1000}}, "whole numbers 0 to 999"),
        ({"name": "flow_uniform", "parameters": {"low": 20, "high": 980}}, "flow_uniform takes times"),
        ({"name": "logit_normal", "parameters": {"shift": 0}}, "shift = 0; take one above 0"),
    ],
)
def test_noise_levels_of_a_config(options: dict[str, Any], words: str) -> None:
    schedule = Schedule(torch.linspace(0.01, 20, 1000, dtype=torch.float64))

    def made(given: dict[str, Any]) -> Any:
        config = NoiseLevelOptions(**given)
        return NOISE_LEVELS[config.name](schedule, **config.parameters)

    drawn = made({"name": "uniform", "parameters": {"low": 20, "high": 980}})(9, torch.Generator().manual_seed(0))
    assert drawn.min() >= schedule.sigmas[20] and drawn.max() <= schedule.sigmas[980]
    with pytest.raises(UserError, match=words):
        made(options)


@pytest.mark.parametrize(
    ("given", "parameters"),
    [({}, {"mean": -2.0, "std": 2.0}), ({"name": "logit_normal"}, {}), ({"name": "flow_uniform"}, {})],
)
def test_a_distribution_has_its_own_parameters(given: dict[str, Any], parameters: dict[str, float]) -> None:
    assert NoiseLevelOptions(**given).parameters == parameters


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "flow_uniform", "parameters": {"mean": 0.0}}, "flow_uniform takes low, high, shift, not mean"),
        ({"name": "uniform", "parameters": {"low": 20}}, "uniform needs high; write it under parameters"),
    ],
)
def test_parameters_of_another_distribution_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        NoiseLevelOptions(**given)

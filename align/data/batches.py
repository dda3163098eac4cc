"""Batches: which prompts, which noise and which noise levels, each a function of (seed, number, row, name), so that
neither the number of processes nor an interruption changes what is drawn.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from align.options import Config
from evaluate import keyed
from evaluate.diffusion import NOISE_LEVELS

#: `(positions of prompts) -> (conditioning, the null prompt's, the prompts)`, rows `[B, ...]` each.
Texts = Callable[[Any], tuple[dict[str, Tensor], dict[str, Tensor], list[str]]]


class NoiseLevelOptions(Config):
    """The distribution that noise levels are drawn from: a name in
    `evaluate.diffusion.NOISE_LEVELS` and its parameters.
    """

    name: str = "lognormal"
    #: By default those of DI*'s lognormal, and for another distribution its own.
    parameters: dict[str, float] = Field(
        default_factory=lambda given: {"mean": -2.0, "std": 2.0} if given.get("name") == "lognormal" else {}
    )

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.name not in NOISE_LEVELS:
            raise ValueError(f"noise_levels.name = {self.name}: unknown; choose from {', '.join(NOISE_LEVELS)}")
        _, *known = inspect.signature(NOISE_LEVELS[self.name]).parameters.values()
        names = [each.name for each in known]
        if wrong := next((name for name in self.parameters if name not in names), None):
            raise ValueError(f"noise_levels: {self.name} takes {', '.join(names)}, not {wrong}")
        for each in known:
            if each.default is each.empty and each.name not in self.parameters:
                raise ValueError(f"noise_levels: {self.name} needs {each.name}; write it under parameters")
        return self


TRIES = 1000  # noise levels that are drawn for one within an interval


def everywhere(number: int | None, seed: int) -> tuple[float, float]:
    """Every noise level, for any batch."""
    return 0.0, math.inf


def seeded(*key: int) -> int:
    """One 32-bit seed out of several non-negative numbers."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of a global batch on their device: prompts, their conditioning and the null prompt's, noise
    levels `[B]`, and keyed noise. number: of the global batch; None for one that is only looked at.
    """

    prompts: list[str]
    cond: dict[str, Tensor]
    uncond: dict[str, Tensor]
    sigma: Tensor
    keys: tuple[str, ...]
    shape: tuple[int, ...]
    seed: int
    number: int | None = None
    _noise: dict[str, Tensor] = field(default_factory=dict)

    def noise(self, name: str) -> Tensor:
        """Standard normal noise `[B, *shape]`, a generator for each row and name: what is asked for by
        one name moves no other's bits.

        It is drawn in float32, so that it is the same in any precision.
        """
        if name not in self._noise:
            rows = [keyed.noise(self.shape, seed=self.seed, key=f"{key}/{name}") for key in self.keys]
            self._noise[name] = torch.stack(rows).to(self.sigma.dtype).to(self.sigma.device)
        return self._noise[name]

    def part(self, rows: slice) -> "Batch":
        """Some of its rows."""
        cond, uncond, noise = (
            {key: x[rows] for key, x in part.items()} for part in (self.cond, self.uncond, self._noise)
        )
        return Batch(
            prompts=self.prompts[rows],
            cond=cond,
            uncond=uncond,
            sigma=self.sigma[rows],
            keys=self.keys[rows],
            shape=self.shape,
            seed=self.seed,
            number=self.number,
            _noise=noise,
        )


class BatchSampler:
    """Draws global batches: batch k is always the same, and prompts come epoch by epoch, each in an order of its own.

    A process draws its own rows alone, as micro-batches of equal size, whatever the number of either.
    """

    def __init__(
        self,
        texts: Texts,
        prompts: int,
        shape: Sequence[int],
        size: int,
        noise_levels: Callable[[int, torch.Generator], Tensor],
        *,
        seed: int,
        interval: Callable[[int | None, int], tuple[float, float]] = everywhere,
        rank: int = 0,
        world: int = 1,
        micro_batches: int = 1,
        device: Any = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        """prompts: how many there are. shape: of one image's latents. size: images in a global batch.

        noise_levels: draws them. interval: (number, seed) -> lowest and highest of a batch.
        """
        self.texts, self.prompts, self.shape, self.size, self.noise_levels, self.seed = (
            texts,
            prompts,
            tuple(shape),
            size,
            noise_levels,
            seed,
        )
        self.interval, self.rank, self.world, self.micro_batches = interval, rank, world, micro_batches
        self.device, self.dtype = device, dtype
        #: Without numbers a few-step generator trains its last step in every batch: that is rewarded and has all others
        #: before it, so that no other takes as much time or memory.
        self.numbered = True
        self._order = lru_cache(2)(lambda epoch: np.random.default_rng((seed, 0, epoch)).permutation(prompts))

    def rows(self, m: int) -> range:
        """This process's rows of the global batch in its micro-batch m."""
        size = self.size // (self.world * self.micro_batches)
        first = (m * self.world + self.rank) * size
        return range(first, first + size)

    def picks(self, k: int, rows: range) -> np.ndarray:
        """The positions of the prompts of these rows of batch k."""
        places = (k * self.size + row for row in rows)
        return np.array([self._order(place // self.prompts)[place % self.prompts] for place in places])

    def draw(self, k: int, m: int) -> Batch:
        """Micro-batch m of batch number k >= 0."""
        rows = self.rows(m)
        keys = tuple(f"{k}/{row}" for row in rows)
        cond, uncond, prompts = self.texts(self.picks(k, rows))
        return Batch(
            prompts=prompts,
            cond=cond,
            uncond=uncond,
            sigma=self._levels(k, keys),
            keys=keys,
            shape=self.shape,
            seed=self.seed,
            number=k if self.numbered else None,
        )

    def afresh(self, batch: Batch) -> Batch:
        """The same rows at other noise levels, with other noise."""
        keys = tuple(f"{key}/afresh" for key in batch.keys)
        return replace(batch, sigma=self._levels(batch.number, keys), keys=keys, _noise={})

    def _levels(self, k: int | None, keys: Sequence[str]) -> Tensor:
        """A noise level for each key `[B]`, of those that batch k may be taken at."""
        low, high = self.interval(k, self.seed)
        sigma = torch.cat([self._level(keyed.generator(self.seed, f"{key}/sigma"), low, high) for key in keys])
        return sigma.to(self.dtype).to(self.device)

    def _level(self, generator: torch.Generator, low: float, high: float) -> Tensor:
        """One noise level `[1]`, drawn again until it is within the interval, and put at its end where it never is."""
        for _ in range(TRIES):
            sigma = self.noise_levels(1, generator)
            if low <= sigma.item() <= high:
                break
        return sigma.clamp(low, high)

    def __call__(self, k: int) -> list[Batch]:
        """This process's micro-batches of batch k."""
        return [self.draw(k, m) for m in range(self.micro_batches)]

"""Batches: which prompts, which noise and which noise levels, each a function of (seed, number, row, name), so that neither the number of
processes nor an interruption changes what is drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluate import pipelines


def seeded(*key: int) -> int:
    """One 32-bit seed out of several non-negative numbers."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Rows of a global batch: prompt positions `[B]`, the generator's z `[B, C, H, W]`, and the diffusion's noise and sigma `[B]`."""

    prompts: np.ndarray
    z: Tensor
    noise: Tensor
    sigma: Tensor

    def to(self, device: Any) -> "Draw":
        """The same with its tensors on `device`."""
        z, noise, sigma = (part.to(device) for part in (self.z, self.noise, self.sigma))
        return Draw(prompts=self.prompts, z=z, noise=noise, sigma=sigma)


class Source:
    """Draws global batches: batch k is always the same, and prompts come epoch by epoch, each in an order of its own.

    Every row of a batch has random numbers of its own, by (seed, k, row, what they are for): a process draws its rows alone, whatever
    their number, and what is drawn for one purpose does not depend on what else is drawn.
    """

    def __init__(
        self, n_prompts: int, shape: Sequence[int], batch: int, sigmas: Callable[[int, torch.Generator], Tensor], *, seed: int
    ):
        self.n, self.shape, self.batch, self.sigmas, self.seed = n_prompts, tuple(shape), batch, sigmas, seed
        self._order = lru_cache(2)(lambda epoch: np.random.default_rng((seed, 0, epoch)).permutation(n_prompts))

    def rows(self, rank: int, world: int, chunk: int, chunks: int) -> range:
        """The rows of one process's one micro-batch. Parts are equal in size and together are the whole."""
        size = self.batch // (world * chunks)
        first = (chunk * world + rank) * size
        return range(first, first + size)

    def __call__(self, k: int, dtype: torch.dtype = torch.float32, rows: range | None = None) -> Draw:
        """The rows, by default all, of batch number k >= 0. Noise is drawn in float32, so that it is the same in any precision."""
        rows = range(self.batch) if rows is None else rows
        at = [k * self.batch + row for row in rows]
        picks = np.array([self._order(place // self.n)[place % self.n] for place in at])
        z, noise = (
            torch.stack([pipelines.noise(self.shape, seed=self.seed, key=f"{k}/{row}/{name}") for row in rows]).to(dtype)
            for name in ("z", "diffusion")
        )
        sigma = torch.cat([self.sigmas(1, pipelines.generator(self.seed, f"{k}/{row}/sigma")) for row in rows])
        return Draw(prompts=picks, z=z, noise=noise, sigma=sigma.to(dtype))

"""Prompts, and every random number of training as a function of (seed, step), so that neither the number of processes nor
an interruption changes what is drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prompts.errors import UserError

MAX_WORDS = 1000


def seeded(*key: int) -> int:
    """One 32-bit seed out of several non-negative numbers."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def read_prompts(source: str) -> list[str]:
    """The prompts `source` names: `shapes:train`, `shapes:test`, or a UTF-8 text file with one prompt a line."""
    if source in ("shapes:train", "shapes:test"):
        from prompts.shapes import captions
        from prompts.shapes.grammar import FAMILIES

        split = "train" if source.endswith("train") else "test"
        per_family = [captions(split, family) for family in FAMILIES]
        # Families count alike, though there are many more pairs than single shapes.
        longest = max(map(len, per_family))
        return [family[i % len(family)] for i in range(longest) for family in per_family]
    path = Path(source)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"prompts = {source}: no such file; give a text file with one prompt a line, or shapes:train") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); check the path and its permissions") from None
    for number, line in enumerate(lines, 1):
        if len(line.split()) > MAX_WORDS:
            raise UserError(
                f"{source}, line {number}: a prompt of {len(line.split()):,} words; shorten it to {MAX_WORDS:,} or fewer"
            )
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{source}: holds no prompt; write one a line")
    return prompts


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One global batch: prompt positions `[B]`, the generator's z `[B, C, H, W]`, and the diffusion's noise and sigma `[B]`."""

    prompts: np.ndarray
    z: Tensor
    noise: Tensor
    sigma: Tensor

    def part(self, rank: int, world: int, chunk: int, chunks: int) -> "Draw":
        """The rows of one process's one micro-batch. Parts are equal in size and together are the whole."""
        size = len(self.prompts) // (world * chunks)
        rows = slice((chunk * world + rank) * size, (chunk * world + rank + 1) * size)
        return Draw(prompts=self.prompts[rows], z=self.z[rows], noise=self.noise[rows], sigma=self.sigma[rows])


class Source:
    """Draws global batches: batch k is always the same, and prompts come epoch by epoch, each in an order of its own."""

    def __init__(
        self, n_prompts: int, shape: Sequence[int], batch: int, sigmas: Callable[[int, torch.Generator], Tensor], *, seed: int
    ):
        self.n, self.shape, self.batch, self.sigmas, self.seed = n_prompts, tuple(shape), batch, sigmas, seed
        self._order = lru_cache(2)(lambda epoch: np.random.default_rng((seed, 0, epoch)).permutation(n_prompts))

    def __call__(self, k: int, dtype: torch.dtype = torch.float32) -> Draw:
        """Batch number k >= 0."""
        at = np.arange(k * self.batch, (k + 1) * self.batch)
        picks = np.array([self._order(int(epoch))[place] for epoch, place in zip(at // self.n, at % self.n, strict=True)])
        generator = torch.Generator().manual_seed(seeded(self.seed, 1, k))
        z, noise = (torch.randn(self.batch, *self.shape, generator=generator, dtype=dtype) for _ in range(2))
        return Draw(prompts=picks, z=z, noise=noise, sigma=self.sigmas(self.batch, generator).to(dtype))

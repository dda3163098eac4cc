"""Random numbers by name: each source depends on a seed and a key alone, so that what one asks for moves no other's
bits, whatever the order, the batch, or the number of processes.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int, key: str) -> torch.Generator:
    """A source of random numbers on the CPU that depends on (seed, key) alone. torch takes 32 bits of it: among 30,000
    keys two have the same numbers with a chance of a tenth.
    """
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def noise(shape: Sequence[int], *, seed: int, key: str) -> Tensor:
    """Standard normal noise that depends on (seed, key) alone, drawn on the CPU in float32."""
    return torch.randn(*shape, generator=generator(seed, key))

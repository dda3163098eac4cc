"""The latents that a stock pipeline hands its scheduler and gets back, whatever form it holds them in."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from evaluate import families

#: Height and width of images that are not square, in pixels.
SIZE = (64, 128)


@contextmanager
def steps_of(scheduler: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Within: the latents that each step is given, and those that it returns."""
    steps: list[tuple[Tensor, Tensor]] = []
    step = scheduler.step

    @wraps(step)  # pipelines ask what it takes
    def noted(output: Tensor, t: Tensor, sample: Tensor, **options: Any) -> Any:
        result = step(output, t, sample, **options)
        steps.append((sample, result[0]))
        return result

    with patch.object(scheduler, "step", noted):
        yield steps


@lru_cache
def places(pipeline: Any) -> Tensor:
    """Where each number of a family's latents stands in those that the pipeline holds, `[1, ...]`; images of SIZE."""
    family, (height, width) = families.of(pipeline), SIZE
    shape = family.latent_shape(pipeline, height, width)
    numbers = torch.arange(math.prod(shape)).float().reshape(1, *shape)
    with steps_of(pipeline.scheduler) as steps:
        pipeline(
            prompt=[""], latents=family.pack(numbers), height=height, width=width, output_type="latent",
            num_inference_steps=2,  # Qwen-Image's scheduler cannot stretch the time of one
            **family.arguments,
        )  # fmt: skip
    return steps[0][0].long()


def unpacked(pipeline: Any, held: Tensor) -> Tensor:
    """The family's latents `[B, C, H, W]` that the pipeline holds so."""
    latents = torch.empty(len(held), held[0].numel())
    latents[:, places(pipeline).flatten()] = held.flatten(1).float()
    return latents.reshape(-1, *families.of(pipeline).latent_shape(pipeline, *SIZE))


def step_noises(pipeline: Any, generators: Sequence[torch.Generator], steps: int) -> dict[str, Tensor]:
    """What stock schedulers draw of the generators of images behind each of so many steps, as a batch names it."""
    form = places(pipeline).shape
    drawn = [torch.cat([torch.randn(form, generator=each) for each in generators]) for _ in range(steps - 1)]
    return {f"step/{j}": unpacked(pipeline, noise) for j, noise in enumerate(drawn, 1)}

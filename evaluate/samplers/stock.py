"""The pipeline's own call, from noise of each image's own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from evaluate import families
from evaluate.keyed import generator, noise
from evaluate.pipelines.recipe import Recipe
from evaluate.samplers import SamplerOptions


class Stock:
    """Stock diffusers."""

    weights_sha256 = None

    def __init__(self, options: SamplerOptions):
        self.options = options

    @torch.no_grad()
    def draw(
        self,
        pipeline: Any,
        recipe: Recipe,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        keys: Sequence[str],
        **overrides: Any,
    ) -> Tensor:
        """Images `[B, 3, H, W]`. Noise, and what a scheduler adds between steps, is of (seed, key)."""
        family = families.of(pipeline)
        arguments = dict(zip(("height", "width"), family.size(pipeline), strict=True)) | recipe.call() | overrides
        shape = family.latent_shape(pipeline, arguments["height"], arguments["width"])
        named = list(zip(seeds, keys, strict=True))
        latents = family.pack(torch.stack([noise(shape, seed=seed, key=key) for seed, key in named]))
        generators = [generator(seed, f"{key}\0steps") for seed, key in named]
        with _noised_by(pipeline.scheduler, generators):
            result = pipeline(
                prompt=list(prompts),  # not always what comes first
                latents=latents.to(pipeline.device, getattr(pipeline, family.network).dtype),
                generator=generators,
                output_type="pt",
                **arguments,
            )
        images: Tensor = result.images.float()
        return images


@contextmanager
def _noised_by(scheduler: Any, generators: list[torch.Generator]) -> Iterator[None]:
    """Within: what the scheduler adds between steps is of these generators, one an image, also where the pipeline hands
    it none, as those of flow matching do. By chance a batch's images would then depend on each other.
    """
    if "generator" not in signature(scheduler.step).parameters:
        yield
        return
    scheduler.step = partial(scheduler.step, generator=generators)
    try:
        yield
    finally:
        del scheduler.step


Options, build = SamplerOptions, Stock  # no options: the recipe says everything

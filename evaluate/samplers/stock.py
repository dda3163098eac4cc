"""The pipeline's own call, from noise of each image's own."""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from evaluate import families
from evaluate.pipelines import Recipe, generator, noise


class StockOptions(BaseModel):
    """There are none: the recipe says everything."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Stock:
    """Stock diffusers."""

    weights_sha256 = None

    def __init__(self, options: StockOptions):
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
        latents = torch.stack([noise(shape, seed=seed, key=key) for seed, key in named])
        result = pipeline(
            list(prompts),
            latents=latents.to(pipeline.device, getattr(pipeline, family.network).dtype),
            generator=[generator(seed, f"{key}\0steps") for seed, key in named],
            output_type="pt",
            **arguments,
        )
        images: Tensor = result.images.float()
        return images


Options, build = StockOptions, Stock

"""The world `shapes` itself: what its captions mean, drawn by its renderer in place of a model.

Every image of it is right, so no generator of that world has a better oracle, and one that is always right has no more
diversity within a caption: what lies above is mistakes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evaluate import keyed
from evaluate.pipelines.recipe import Recipe
from evaluate.samplers import SamplerOptions
from prompts.io.errors import UserError


class Renderer:
    """Draws a caption's scene, its places, sizes and light by chance."""

    weights_sha256 = None

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
        """Images `[B, 3, 32, 32]`; of the pipeline only its device is asked. UserError for what is no caption."""
        from prompts.shapes import render

        try:
            drawn = [
                render([prompt], seed=keyed.generator(seed, key).initial_seed())
                for prompt, seed, key in zip(prompts, seeds, keys, strict=True)
            ]
        except ValueError as error:
            raise UserError(f"shapes_renderer draws captions of its world alone: {error}") from None
        return torch.cat([torch.from_numpy(image) for image in drawn]).to(pipeline.device)


Options = SamplerOptions


def build(options: SamplerOptions) -> Renderer:
    """What draws."""
    return Renderer()

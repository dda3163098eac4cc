"""A family's network as a denoiser, `(x, sigma) -> x0_hat`, bound to its prompts."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from evaluate.diffusion import PREDICTIONS, Denoiser, denoise
from evaluate.families import Family
from prompts.io.errors import UserError


class Preconditioning:
    """How a family's network is fed and read at a noise level, by the scheduler that its pipeline has."""

    def __init__(
        self,
        family: Family,
        pipeline: Any,
        autocast: Callable[[], Any],
        *,
        source: str,
        size: tuple[int, int] | None = None,
        embedded_guidance: float | None = None,
    ):
        """source: what to call the pipeline in an error. size: height and width in pixels, by default what the network
        was made for. embedded_guidance: the scale that a network of embedded guidance is told.
        """
        step = math.lcm(8, pipeline.vae_scale_factor * family.patch)  # a recipe's sizes are multiples of 8
        if size and any(edge % step for edge in size):
            nearest = [max(step, round(edge / step) * step) for edge in size]
            raise UserError(f"size = {list(size)}: {source} draws multiples of {step} pixels; set it to {nearest}")
        self.size, size = size, size or family.size(pipeline)
        self.family, self.autocast, self.embedded_guidance = family, autocast, embedded_guidance
        self.pixels: int = pipeline.vae_scale_factor
        self.latent_shape = family.latent_shape(pipeline, *size)
        self.schedule = family.noise_levels(pipeline, *size)
        if self.schedule.prediction not in PREDICTIONS:
            raise UserError(
                f"reference = {source}: prediction type {self.schedule.prediction!r} is not known; known:"
                f" {', '.join(PREDICTIONS)}"
            )
        embeds = bool(getattr(pipeline, family.network).config.get("guidance_embeds"))
        if embeds != (embedded_guidance is not None):
            what = "is told a guidance scale" if embeds else "has no embedded guidance"
            remedy = "set guidance.embedded, for example to 3.5" if embeds else "leave guidance.embedded out"
            raise UserError(f"reference = {source}: its network {what}; {remedy}")

    def denoiser(self, network: nn.Module, conditioning: dict[str, Tensor]) -> Denoiser:
        """A network bound to its prompts' rows."""

        def bound(y: Tensor, t: Tensor) -> Tensor:
            told = conditioning
            if self.embedded_guidance is not None:
                told = told | {"guidance": torch.full_like(t, self.embedded_guidance, dtype=y.dtype)}
            with self.autocast():
                out: Tensor = self.family.call(network, y, t, told, self.pixels)
            return out

        return lambda x, sigma: denoise(bound, x, sigma, schedule=self.schedule)

"""A family's network as a denoiser, `(x, sigma) -> x0_hat`, bound to its prompts."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from evaluate.diffusion import PREDICTIONS, Denoiser, denoise
from evaluate.families import Family
from prompts.io.errors import UserError


class Preconditioning:
    """How a family's network is fed and read at a noise level, by the scheduler that its pipeline has."""

    def __init__(self, family: Family, pipeline: Any, autocast: Callable[[], Any], *, source: str):
        """source: what to call the pipeline in an error."""
        self.family, self.autocast = family, autocast
        self.pixels: int = pipeline.vae_scale_factor
        self.latent_shape = family.latent_shape(pipeline, *family.size(pipeline))
        self.schedule = family.noise_levels(pipeline.scheduler)
        self.prediction = pipeline.scheduler.config.prediction_type
        if self.prediction not in PREDICTIONS:
            raise UserError(
                f"reference = {source}: prediction type {self.prediction!r} is not known; known:"
                f" {', '.join(PREDICTIONS)}"
            )

    def denoiser(self, network: nn.Module, conditioning: dict[str, Tensor]) -> Denoiser:
        """A network bound to its prompts' rows."""

        def bound(y: Tensor, t: Tensor) -> Tensor:
            with self.autocast():
                out: Tensor = self.family.call(network, y, t, conditioning, self.pixels)
            return out

        return lambda x, sigma: denoise(bound, x, sigma, schedule=self.schedule, prediction=self.prediction)

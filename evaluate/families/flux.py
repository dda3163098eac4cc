"""FLUX.1: a transformer of flow matching over latents packed two by two.

It is drawn and scored here, and not trained yet.
"""

from typing import Any

from evaluate.families import Family


class Flux(Family):
    """FLUX.1."""

    pipelines = ("FluxPipeline",)

    def latent_shape(self, pipeline: Any, height: int, width: int) -> tuple[int, ...]:
        """A row for every two by two latents."""
        scale = 2 * pipeline.vae_scale_factor
        return height // scale * (width // scale), pipeline.transformer.config.in_channels


family = Flux()

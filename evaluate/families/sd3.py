"""Stable Diffusion 3: a transformer of flow matching. It is drawn and scored here, and not trained yet."""

from evaluate.families import Family


class StableDiffusion3(Family):
    """Stable Diffusion 3 and 3.5."""

    pipelines = ("StableDiffusion3Pipeline",)


family = StableDiffusion3()

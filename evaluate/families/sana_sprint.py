"""SANA-Sprint: SANA's network distilled to few steps of TrigFlow, and told a guidance scale. It can be drawn with, not
trained: its scheduler, SCMScheduler, has noise levels of another kind than training here knows.
"""

from typing import Any

from evaluate.diffusion import NoiseLevels
from evaluate.families.sana import Sana
from prompts.io.errors import UserError


class SanaSprint(Sana):
    """SANA-Sprint."""

    pipelines = ("SanaSprintPipeline",)
    flow = False

    def noise_levels(self, pipeline: Any, height: int, width: int) -> NoiseLevels:
        """Raises UserError."""
        raise UserError(f"{type(pipeline).__name__}: can be evaluated but not trained yet; choose another reference")


family = SanaSprint()

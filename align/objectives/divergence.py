"""The options that all divergences share."""

from typing import Literal

from pydantic import Field, PositiveFloat, field_validator

from align.options import Config


class Divergence(Config):
    """How far the student may go from the reference. `distance`, `huber_c` and `gradient` belong to SIM and DI*."""

    weight: Literal["constant", "edm", "dmd", "inverse_norm"] = "constant"
    distance: str = "pseudo_huber"
    huber_c: PositiveFloat | None = Field(None, description="denoiser units; by default 0.00054 sqrt(C H W)")
    gradient: Literal["exact", "exact_sequential", "detached"] = "exact"

    @field_validator("distance")
    @classmethod
    def _known(cls, name: str) -> str:
        from align.objectives.distances import DISTANCES

        if name not in DISTANCES:
            raise ValueError(f"divergence.distance = {name}: unknown; choose from {', '.join(DISTANCES)}")
        return name

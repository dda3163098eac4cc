"""The options that all divergences share."""

from collections.abc import Collection
from typing import Literal

from pydantic import Field, PositiveFloat, ValidationInfo, field_validator

from align.objectives.distances import DISTANCES
from align.objectives.weightings import WEIGHTS
from align.options import Config


class Divergence(Config):
    """How far the student may go from the reference. `distance`, `huber_c` and `gradient` belong to SIM and DI*."""

    weight: str = "constant"
    distance: str = "pseudo_huber"
    huber_c: PositiveFloat | None = Field(None, description="denoiser units; by default 0.00054 sqrt(C H W)")
    gradient: Literal["exact", "exact_sequential", "detached"] = "exact"

    @field_validator("distance", "weight")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        known: Collection[str] = DISTANCES if info.field_name == "distance" else WEIGHTS
        if name not in known:
            raise ValueError(f"divergence.{info.field_name} = {name}: unknown; choose from {', '.join(known)}")
        return name

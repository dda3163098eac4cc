"""What every part's options share: the base class, the ranges of numbers, and how options are written down."""

from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field

NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Config(BaseModel):
    """What every section shares: it is frozen and knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def dump(config: Config) -> str:
    """The config as YAML, every key spelled out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

"""Optimisers by name."""

import importlib
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import nn

from align.options import Config, Fraction, NonNegative
from prompts.io.errors import UserError


class Optimizer(Config):
    """How a role's parameters are updated."""

    name: Literal["adam", "adamw", "adam8bit", "adamw8bit", "sgd"] = Field(
        "adam", description="8bit: bitsandbytes', whose two states take a byte per parameter each in place of four"
    )
    learning_rate: PositiveFloat
    betas: tuple[Fraction, Fraction] = (0.0, 0.999)
    weight_decay: NonNegative = 0.0
    max_grad_norm: PositiveFloat | None = Field(10.0, description="gradients of a larger norm are scaled down to it")

    @model_validator(mode="after")
    def _decays_as_its_name_says(self) -> "Optimizer":
        if self.name == "adam8bit" and self.weight_decay:
            raise ValueError("adam8bit with weight_decay decays as AdamW does; set name to adamw8bit")
        return self


def make_optimizer(options: Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser a config names."""
    if options.name == "sgd":
        return torch.optim.SGD(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
    library: Any = torch
    if options.name.endswith("8bit"):
        try:
            library = importlib.import_module("bitsandbytes")
        except ImportError:
            plain = options.name.removesuffix("8bit")
            raise UserError(
                f"optimiser {options.name!r}: bitsandbytes is not installed; install 'onestep-align[8bit]', or set name"
                f" to {plain}"
            ) from None
    kinds = {"adam": "Adam", "adamw": "AdamW", "adam8bit": "Adam8bit", "adamw8bit": "AdamW8bit"}
    rest: dict[str, Any] = {"betas": options.betas, "weight_decay": options.weight_decay}
    if library is torch:
        # On a GPU torch's default makes a copy of all parameters in every step; the fused kernel makes
        # none, and is faster on a CPU too.
        rest["fused"] = True
    optimizer: torch.optim.Optimizer = getattr(library.optim, kinds[options.name])(
        parameters, lr=options.learning_rate, **rest
    )
    return optimizer

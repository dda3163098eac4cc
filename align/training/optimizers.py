"""Optimisers by name."""

import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from align.config import Optimizer
from prompts.errors import UserError


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
                f"optimiser {options.name!r}: bitsandbytes is not installed; install 'onestep-align[8bit]', or set name to {plain}"
            ) from None
    kinds = {"adam": "Adam", "adamw": "AdamW", "adam8bit": "Adam8bit", "adamw8bit": "AdamW8bit"}
    rest: dict[str, Any] = {"betas": options.betas, "weight_decay": options.weight_decay}
    if library is torch:
        # On a GPU torch's default makes a copy of all parameters in every step; the fused kernel makes none, and is faster on a CPU too.
        rest["fused"] = True
    made: torch.optim.Optimizer = getattr(library.optim, kinds[options.name])(parameters, lr=options.learning_rate, **rest)
    return made


def descend(
    options: Optimizer,
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[nn.Parameter],
    clip: Callable[..., Any] = nn.utils.clip_grad_norm_,
) -> Any:
    """One step of an optimiser, gradients clipped by `clip` before and gone after. Returns their norm."""
    norm = clip(list(parameters), math.inf if options.clip is None else options.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm

"""Optimisers by name, and what they train."""

import importlib
import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function

from align.config import Optimizer
from align.networks import sharding
from align.objectives.metrics import Metrics
from align.training.process import Alone
from prompts.io.errors import UserError


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


class Learner:
    """A part that is trained: its module as training calls it, its parameters by name, and their optimiser."""

    def __init__(self, name: str, module: nn.Module, parameters: dict[str, nn.Parameter], options: Optimizer, process: Alone):
        self.name, self.role, self.parameters, self.options, self.process = name, module, parameters, options, process
        self.module, self.optimizer = process.prepare(module, make_optimizer(options, list(parameters.values())))

    def grad_sync(self, on: bool) -> Any:
        """Within: whether gradients are averaged over processes, which they need with the last micro-batch only."""
        if self.process.sharded:
            sharding.sync(self.module, on)
        return nullcontext() if on else self.process.unsynced(self.module)

    def step(self, metrics: Metrics) -> None:
        """Clip the gradients, descend, and let go of them; their norm is noted."""
        limit = math.inf if self.options.clip is None else self.options.clip
        with record_function(f"{self.name}'s optimiser"):
            norm = self.process.clip(list(self.parameters.values()), limit)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        metrics.set(f"{self.name}_gradient", sharding.full(norm))

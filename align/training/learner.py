"""What is trained, with its optimiser."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn
from torch.profiler import record_function

from align.networks import sharding
from align.networks.optimizers import Optimizer, make_optimizer
from align.objectives.metrics import Metrics
from align.training.process import Alone


class Learner:
    """A part that is trained: its module as training calls it, its parameters by name, and their optimiser."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        parameters: dict[str, nn.Parameter],
        options: Optimizer,
        process: Alone,
        *,
        buffers: Mapping[str, Tensor] | None = None,
    ):
        """buffers: what else a state has to hold, of a network whose buffers are no constants."""
        self.name, self.parameters, self.options, self.process = name, parameters, options, process
        self.buffers = dict(buffers or {})
        self.module, self.optimizer = process.prepare(module, make_optimizer(options, list(parameters.values())))

    def grad_sync(self, on: bool) -> Any:
        """Within: whether gradients are averaged over processes, which they need with the last micro-batch only."""
        if self.process.sharded:
            sharding.sync(self.module, on)
        return nullcontext() if on else self.process.unsynced(self.module)

    def step(self, metrics: Metrics) -> None:
        """Clip the gradients, descend, and let go of them; their norm is noted."""
        limit = math.inf if self.options.max_grad_norm is None else self.options.max_grad_norm
        with record_function(f"{self.name}'s optimiser"):
            norm = self.process.clip_grad_norm(list(self.parameters.values()), limit)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        metrics.set(f"{self.name}_gradient", sharding.full(norm))

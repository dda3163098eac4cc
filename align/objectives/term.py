"""A term of the student's loss, which is nothing but its gradient at x0."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from align.data.batches import Batch
    from align.generators import Generator
    from align.objectives.denoisers import Denoisers
    from align.objectives.metrics import Metrics
    from align.rewards.differentiable import Rewards


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a term may lean on: denoisers, the generator, rewards, and what is trained beside the student, by name."""

    denoisers: "Denoisers"
    generator: "Generator"
    rewards: "Rewards"
    critics: dict[str, Any]


class Term(Protocol):
    """One summand: a divergence, guidance, a reward, or anything that says where x0 should go."""

    name: str

    def gradient(self, x0: Tensor, batch: "Batch", metrics: "Metrics") -> Tensor:
        """Of the batch's mean loss with respect to x0 `[B, ...]`, which has no graph.

        What is worth knowing goes into `metrics`.
        """


class ByAutograd:
    """A term of a loss `(x0, batch, metrics) -> [B]` that autograd differentiates."""

    def __init__(self, name: str, loss: Callable[[Tensor, "Batch", "Metrics"], Tensor]):
        self.name, self.loss = name, loss

    def gradient(self, x0: Tensor, batch: "Batch", metrics: "Metrics") -> Tensor:
        """As the protocol has it; the loss's mean is noted under the term's name."""
        leaf = x0.detach().requires_grad_()
        loss = self.loss(leaf, batch, metrics).mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        metrics.add(self.name, loss.detach())
        return gradient

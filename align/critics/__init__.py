"""Critics: what is trained beside the student, on what it makes.

A file here, or in an extension's `critics/`, is one where it has `Options`, an `Optimizer` (`networks.optimizers`) with
what else it wants to be told, and `build(options, denoisers) -> Critic`.
"""

from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from prompts.extensions import extended

__path__ = extended(__path__, "critics")

if TYPE_CHECKING:
    from align.data.batches import Batch


class Critic(Protocol):
    """Has a network and an optimiser of its own, and follows the student.

    network: what is trained, a module that training may wrap; `loss` calls it by this attribute.
    """

    name: str
    network: nn.Module

    def loss(self, x0: Tensor, batch: "Batch") -> Tensor:
        """What it descends, `[B]`, for latents x0 `[B, ...]` that the student has made, which take no gradient."""

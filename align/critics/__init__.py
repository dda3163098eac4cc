"""Critics: what is trained beside the student, on what it makes. A file here is one."""

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from align.data.batches import Batch


class Critic(Protocol):
    """Has networks and an optimiser of its own, and follows the student."""

    name: str

    def loss(self, x0: Tensor, batch: "Batch") -> Tensor:
        """What it descends, `[B]`, for latents x0 `[B, ...]` that the student has made, which take no gradient."""

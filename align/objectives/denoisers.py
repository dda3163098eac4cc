"""The denoisers that terms compare, bound to the prompts of a batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from evaluate.diffusion import Denoiser

if TYPE_CHECKING:
    from align.data.batches import Batch
    from align.networks.preconditioning import Preconditioning
    from align.networks.roles import Roles


def guided(conditional: Denoiser, unconditional: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance inside the reference: `D(null) + g (D(c) - D(null))`; g = 1 is no guidance."""
    if scale == 1.0:
        return conditional

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        base = unconditional(x, sigma)
        return base + scale * (conditional(x, sigma) - base)

    return denoiser


@dataclass(frozen=True, kw_only=True)
class Denoisers:
    """What terms compare: the assistant, the reference as it is, and the reference as the student should come to it.

    guidance: the scale g inside the reference; 1 is none.
    """

    preconditioning: "Preconditioning"
    roles: "Roles"
    guidance: float = 1.0

    def assistant(self, batch: "Batch") -> Denoiser:
        """The score of the student's own distribution."""
        return self.preconditioning.denoiser(self.roles.assistant, batch.cond)

    def conditional(self, batch: "Batch") -> Denoiser:
        """The reference, without guidance."""
        return self.preconditioning.denoiser(self.roles.reference, batch.cond)

    def unconditional(self, batch: "Batch") -> Denoiser:
        """The reference at the null prompt."""
        return self.preconditioning.denoiser(self.roles.reference, batch.uncond)

    def reference(self, batch: "Batch") -> Denoiser:
        """The reference, guided where guidance goes inside it."""
        return guided(self.conditional(batch), self.unconditional(batch), self.guidance)

"""Networks as denoisers, `(x, sigma) -> x0_hat`, bound to the prompts of a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from align.objectives.denoising import Denoiser
from align.objectives.guidance import guided
from evaluate.diffusion import PREDICTIONS, Schedule, denoise
from prompts.errors import UserError

if TYPE_CHECKING:
    from align.data.batches import Batch
    from align.networks.roles import Roles


class Preconditioning:
    """How a family's network is fed and read at a noise level, by the scheduler that its pipeline has."""

    def __init__(self, family: Any, pipeline: Any, autocast: Callable[[], Any], *, source: str):
        """source: what to call the pipeline in an error."""
        self.family, self.autocast = family, autocast
        self.pixels: int = pipeline.vae_scale_factor
        self.schedule = Schedule.from_scheduler(pipeline.scheduler)
        self.prediction = pipeline.scheduler.config.prediction_type
        if self.prediction not in PREDICTIONS:
            raise UserError(
                f"reference = {source}: prediction type {self.prediction!r} is not known; known: {', '.join(PREDICTIONS)}"
            )

    def denoiser(self, network: nn.Module, conditioning: dict[str, Tensor]) -> Denoiser:
        """A network bound to its prompts' rows."""

        def bound(y: Tensor, t: Tensor) -> Tensor:
            with self.autocast():
                out: Tensor = self.family.call(network, y, t, conditioning, self.pixels)
            return out

        return lambda x, sigma: denoise(bound, x, sigma, schedule=self.schedule, prediction=self.prediction)


@dataclass(frozen=True, kw_only=True)
class Denoisers:
    """What terms compare: the assistant, the reference as it is, and the reference as the student should come to it.

    guidance: the scale g inside the reference; 1 is none.
    """

    preconditioning: Preconditioning
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

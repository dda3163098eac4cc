"""The assistant: a diffusion model of what the student makes, so that the student's score is known
(DI* Algorithm 1, upper half).
"""

from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from align.data.batches import Batch
from align.networks.optimizers import Optimizer
from align.networks.preconditioning import Preconditioning
from align.objectives.denoisers import Denoisers
from align.objectives.denoising import assistant_loss
from align.objectives.weightings import WEIGHTS, Weight


class AssistantConfig(Optimizer):
    """The assistant's optimiser and how often it runs."""

    updates: PositiveInt = Field(1, description="per generator update; k_ta of DI* Algorithm 1")
    warmup: int = Field(0, ge=0, description="updates on the student's samples before the student's first")
    weight: Literal["constant", "edm"] = "edm"
    shares_images: bool = Field(
        False,
        description="the student takes the images of the assistant's last update: one forward of it less",
    )


class Assistant:
    """Learns to denoise the student's latents."""

    name = "assistant"

    def __init__(self, network: nn.Module, preconditioning: Preconditioning, *, weight: Weight):
        """network: the role."""
        self.network, self.preconditioning, self.weight = network, preconditioning, weight

    def loss(self, x0: Tensor, batch: Batch) -> Tensor:
        """Denoising score matching."""
        denoiser = self.preconditioning.denoiser(self.network, batch.cond)
        return assistant_loss(x0, batch.noise("diffusion"), batch.sigma, assistant=denoiser, weight=self.weight)


def build(options: AssistantConfig, denoisers: Denoisers) -> Assistant:
    """The assistant of a run's roles."""
    return Assistant(denoisers.roles.assistant, denoisers.preconditioning, weight=WEIGHTS[options.weight])

"""Classifier-free guidance as a reward."""

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from align.objectives.denoising import add_noise, dot
from align.objectives.term import ByAutograd, Context, Term
from align.objectives.weightings import WEIGHTS, Weight, weight_of
from align.options import Config
from evaluate.diffusion import Denoiser

if TYPE_CHECKING:
    from align.data.batches import Batch
    from align.objectives.metrics import Metrics


class Guidance(Config):
    """Classifier-free guidance: inside the `reference`, as a `reward` (alpha_cfg = scale - 1), or off."""

    where: Literal["off", "reference", "reward"] = "off"
    scale: PositiveFloat = Field(1.0, description="g; 1 is no guidance")
    embedded: PositiveFloat | None = Field(
        None, description="the scale that networks of embedded guidance, as FLUX.1-dev's, are told; no guidance of ours"
    )


class GuidanceReward(NamedTuple):
    """The scale g, and the name of the weight, which is the divergence's."""

    scale: float
    weight: str


def cfg_reward_loss(
    x0: Tensor, noise: Tensor, sigma: Tensor, *, conditional: Denoiser, unconditional: Denoiser, weight: Weight = None
) -> Tensor:
    """Classifier-free guidance as a reward, `-w(sigma) sg[D_ref(x|c) - D_ref(x|null)]^T x` (DI++ eq. 3.5, DI* Theorem
    3.2).

    Descending it raises log p(c|x). DI*'s eq. 3.5 and listing print the opposite sign, which lowers it. Multiply by
    alpha_cfg = g - 1: for a weight that does not depend on the reference, `ikl_loss` against an unguided reference plus
    this equals `ikl_loss` against one guided at scale g (DI++ Theorem 3.4). A callable weight is given `(sigma, x0,
    conditional - unconditional, conditional)`. Shapes: x0 and noise `[B, ...]`, sigma `[B]`; returns `[B]`.
    """
    x = add_noise(x0, noise, sigma)
    with torch.no_grad():
        target = conditional(x, sigma)
        direction = target - unconditional(x, sigma)
    return -weight_of(weight, sigma, x0, direction, target) * dot(direction, x)


def build(options: GuidanceReward, context: Context) -> Term:
    """`alpha_cfg = g - 1` times the loss."""
    denoisers, weight = context.denoisers, WEIGHTS[options.weight]

    def loss(x0: Tensor, batch: "Batch", metrics: "Metrics") -> Tensor:
        networks = {"conditional": denoisers.conditional(batch), "unconditional": denoisers.unconditional(batch)}
        return (options.scale - 1) * cfg_reward_loss(
            x0, batch.noise("diffusion"), batch.sigma, weight=weight, **networks
        )

    return ByAutograd("guidance", loss)

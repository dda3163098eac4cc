"""Integral KL divergence (Diff-Instruct, DI++)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from align.objectives.denoising import add_noise, dot
from align.objectives.divergence import Divergence
from align.objectives.term import ByAutograd, Context, Term
from align.objectives.weightings import WEIGHTS, Weight, weight_of
from evaluate.diffusion import Denoiser

if TYPE_CHECKING:
    from align.data.batches import Batch
    from align.objectives.metrics import Metrics


def ikl_loss(
    x0: Tensor, noise: Tensor, sigma: Tensor, *, assistant: Denoiser, reference: Denoiser, weight: Weight = None
) -> Tensor:
    """Integral KL divergence of student and reference, `w(sigma) sg[u]^T x` (DI++ Theorem 3.2 and eq. 3.7-3.9, B.13).

    Its value means nothing, its gradient does: that of `KL(p_sigma || q_sigma)` times `w sigma^2`. Shapes: x0 and noise
    `[B, ...]`, sigma `[B]`; returns `[B]`.
    """
    x = add_noise(x0, noise, sigma)
    with torch.no_grad():
        target = reference(x, sigma)
        u = assistant(x, sigma) - target
    return weight_of(weight, sigma, x0, u, target) * dot(u, x)


def build(options: Divergence, context: Context) -> Term:
    """The divergence of Diff-Instruct and DI++."""
    denoisers, weight = context.denoisers, WEIGHTS[options.weight]

    def loss(x0: Tensor, batch: "Batch", metrics: "Metrics") -> Tensor:
        networks = {"assistant": denoisers.assistant(batch), "reference": denoisers.reference(batch)}
        return ikl_loss(x0, batch.noise("diffusion"), batch.sigma, weight=weight, **networks)

    return ByAutograd("divergence", loss)

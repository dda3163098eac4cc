"""Classifier-free guidance: inside the reference, or as a reward."""

import torch
from torch import Tensor

from align.objectives.denoising import add_noise, dot
from align.objectives.weightings import Weight, weight_of
from evaluate.diffusion import Denoiser


def cfg_reward_loss(
    x0: Tensor, noise: Tensor, sigma: Tensor, *, conditional: Denoiser, unconditional: Denoiser, weight: Weight = None
) -> Tensor:
    """Classifier-free guidance as a reward, `-w(sigma) sg[D_ref(x|c) - D_ref(x|null)]^T x` (DI++ eq. 3.5, DI* Theorem 3.2).

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


def guided(conditional: Denoiser, unconditional: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance inside the reference: `D(null) + g (D(c) - D(null))`; g = 1 is no guidance."""
    if scale == 1.0:
        return conditional

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        base = unconditional(x, sigma)
        return base + scale * (conditional(x, sigma) - base)

    return denoiser

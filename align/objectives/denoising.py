"""Denoising score matching, the loss of the assistant."""

from torch import Tensor

from align.objectives.weightings import Weight, weight_of
from evaluate.diffusion import Denoiser, append_dims


def assistant_loss(x0: Tensor, noise: Tensor, sigma: Tensor, *, assistant: Denoiser, weight: Weight = None) -> Tensor:
    """Denoising score matching, `lambda(sigma) ||D_psi(x) - sg[x0]||^2` (DI++ eq. 2.2 and
    C.2; DI* Algorithm 1, step 3).

    The only loss whose gradient flows to the assistant's parameters, and to nothing else. A callable weight is given
    `(sigma, x0, D_psi(x) - x0, x0)`. Shapes: x0 and noise `[B, ...]`, sigma `[B]`; returns `[B]`, non-negative for a
    non-negative weight.
    """
    x0 = x0.detach()
    error = assistant(add_noise(x0, noise, sigma), sigma) - x0
    return weight_of(weight, sigma, x0, error, x0) * dot(error, error)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample of a and b, `[B, ...]` to `[B]`."""
    return (a * b).flatten(1).sum(1)


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """`x = x0 + sigma * noise`."""
    return x0 + append_dims(sigma, x0) * noise

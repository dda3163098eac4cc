"""Score divergence (SIM, DI*): Theorem 3.1's gradient."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from align.objectives.denoising import add_noise, dot
from align.objectives.distances import DISTANCES, default_huber_c, distance_gradient, hessian_vector_product
from align.objectives.divergence import Divergence
from align.objectives.term import ByAutograd, Context, Term
from align.objectives.weightings import WEIGHTS, Weight, weight_of
from evaluate.diffusion import Denoiser, append_dims

if TYPE_CHECKING:
    from align.data.batches import Batch
    from align.objectives.metrics import Metrics

Gradient = Literal["exact", "exact_sequential", "detached"]


def score_divergence_loss(
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    *,
    assistant: Denoiser,
    reference: Denoiser,
    distance: str = "pseudo_huber",
    huber_c: float | None = None,
    gradient: Gradient = "exact",
    weight: Weight = None,
) -> Tensor:
    """Score divergence of SIM and DI*, `-w(sigma) d'(u)^T (D_psi(x) - x0)` (DI* eq. 3.4 and Theorem 3.1).

    gradient:
        `exact`             Theorem 3.1's: through x0, and through x into both networks, inside d'(u) too.
        `exact_sequential`  the same numbers with one network's activations alive at a time, for one more forward pass.
        `detached`          through x0 alone. A normalised `ikl_loss` step, cheaper, and *not* Theorem 3.1's gradient.
    distance: a name in `DISTANCES`; `l2` with w = 1 is twice SiD's loss at its alpha = 1.
    huber_c: in denoiser units; see `default_huber_c`.

    Shapes: x0 and noise `[B, ...]`, sigma `[B]`; returns `[B]`. The gradient for x0 is computed in the forward pass, so
    it can be taken once, by `backward()`, and not differentiated again. Raises ValueError for an unknown name.
    """
    _check(distance, gradient)
    if huber_c is None:
        huber_c = default_huber_c(x0)

    if gradient == "exact":
        with torch.enable_grad():
            leaf = x0.detach().requires_grad_()
            x = add_noise(leaf, noise, sigma)
            prediction, target = assistant(x, sigma), reference(x, sigma)
            u = prediction - target
            w = weight_of(weight, sigma, x0, u, target)
            loss = -w * dot(distance_gradient(distance, u, huber_c), prediction - leaf)
            (grad_x0,) = torch.autograd.grad(loss.sum(), leaf)
        return with_gradient(loss, grad_x0, x0)

    x = add_noise(x0.detach(), noise, sigma)
    with torch.no_grad():
        target = reference(x, sigma)
    # The sequential form keeps the assistant's graph from this one pass, and frees it before the reference runs again.
    with torch.set_grad_enabled(gradient == "exact_sequential"):
        x.requires_grad_(gradient == "exact_sequential")
        prediction = assistant(x, sigma)
    u, v = (prediction - target).detach(), (prediction - x0).detach()
    w = weight_of(weight, sigma, x0, u, target)
    d_prime = distance_gradient(distance, u, huber_c)
    grad_x0 = append_dims(w, x0) * d_prime
    if gradient == "exact_sequential":
        # With H = d''(u): dL/dx = -w [J_psi^T (H v + d') - J_ref^T H v], and dL/dx0 = dL/dx + w d'.
        hv = hessian_vector_product(distance, u, v, huber_c)
        (from_assistant,) = torch.autograd.grad(prediction, x, hv + d_prime)
        del prediction
        with torch.enable_grad():
            (from_reference,) = torch.autograd.grad(reference(x, sigma), x, hv)
        grad_x0 = grad_x0 - append_dims(w, x0) * (from_assistant - from_reference)
    return with_gradient(-w * dot(d_prime, v), grad_x0, x0)


def _check(distance: str, gradient: str) -> None:
    if distance not in DISTANCES:
        raise ValueError(f"unknown distance {distance!r}; choose one of {', '.join(DISTANCES)}")
    if gradient not in ("exact", "exact_sequential", "detached"):
        raise ValueError(f"unknown gradient {gradient!r}; choose exact, exact_sequential or detached")


def with_gradient(value: Tensor, grad_x0: Tensor, x0: Tensor) -> Tensor:
    """`[B]` with the given value, whose gradient with respect to x0 is `grad_x0` and which leads nowhere else."""
    through = dot(grad_x0.detach(), x0)
    return value.detach() + (through - through.detach())


def build(options: Divergence, context: Context) -> Term:
    """The divergence of SIM and DI*."""
    denoisers, weight = context.denoisers, WEIGHTS[options.weight]

    def loss(x0: Tensor, batch: "Batch", metrics: "Metrics") -> Tensor:
        return score_divergence_loss(
            x0,
            batch.noise("diffusion"),
            batch.sigma,
            assistant=denoisers.assistant(batch),
            reference=denoisers.reference(batch),
            distance=options.distance,
            huber_c=options.huber_c,
            gradient=options.gradient,
            weight=weight,
        )

    return ByAutograd("divergence", loss)

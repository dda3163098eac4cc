"""The losses of Diff-Instruct, SIM, Diff-Instruct++ and Diff-Instruct*.

Notation: `x = x0 + sigma * noise` is the student's picture `x0 = G(z)` with noise added. `assistant` and `reference` are
denoisers `(x: [B, ...], sigma: [B]) -> x0_hat: [B, ...]` bound to their prompts; the assistant follows the student's
distribution, the reference is what the student must stay close to. `u = assistant(x) - reference(x)` is the difference of
their scores times sigma^2.

Every function takes tensors and returns an unreduced `[B]` tensor, summed over all other dimensions; take its mean over
the batch and call `backward()`. In the divergences no gradient reaches the parameters of assistant or reference: only x0,
and whatever produced it, receives one.

Papers: DI++ = Diff-Instruct++ (Luo 2024); DI* = Diff-Instruct* (Luo et al. 2025); SIM = Score Implicit Matching (Luo et
al. 2024); SiD = Score identity Distillation (Zhou et al. 2024).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from align.diffusion import expand
from align.distances import DISTANCES, default_huber_c, distance_gradient, hessian_vector_product

Denoiser = Callable[[Tensor, Tensor], Tensor]
#: `[B]`, or a function `(sigma [B], x0, u, reference(x)) -> [B]`. Never differentiated. None is 1.
Weight = Tensor | Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None
Gradient = Literal["exact", "exact_sequential", "detached"]


def assistant_loss(x0: Tensor, noise: Tensor, sigma: Tensor, *, assistant: Denoiser, weight: Weight = None) -> Tensor:
    """Denoising score matching, `lambda(sigma) ||D_psi(x) - sg[x0]||^2` (DI++ eq. 2.2 and C.2; DI* Algorithm 1, step 3).

    The only loss whose gradient flows to the assistant's parameters, and to nothing else. A callable weight is given
    `(sigma, x0, D_psi(x) - x0, x0)`. Shapes: x0 and noise `[B, ...]`, sigma `[B]`; returns `[B]`, non-negative for a
    non-negative weight.
    """
    x0 = x0.detach()
    error = assistant(_diffuse(x0, noise, sigma), sigma) - x0
    return _weight(weight, sigma, x0, error, x0) * _dot(error, error)


def ikl_loss(
    x0: Tensor, noise: Tensor, sigma: Tensor, *, assistant: Denoiser, reference: Denoiser, weight: Weight = None
) -> Tensor:
    """Integral KL divergence of student and reference, `w(sigma) sg[u]^T x` (DI++ Theorem 3.2 and eq. 3.7-3.9, B.13).

    Its value means nothing, its gradient does: that of `KL(p_sigma || q_sigma)` times `w sigma^2`. Shapes: x0 and noise
    `[B, ...]`, sigma `[B]`; returns `[B]`.
    """
    x = _diffuse(x0, noise, sigma)
    with torch.no_grad():
        target = reference(x, sigma)
        u = assistant(x, sigma) - target
    return _weight(weight, sigma, x0, u, target) * _dot(u, x)


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
    distance: a name in `DISTANCES`; `l2` with w = 1 is twice SiD's loss at its alpha = 1. huber_c: in denoiser units; see
        `default_huber_c`.

    Shapes: x0 and noise `[B, ...]`, sigma `[B]`; returns `[B]`. The gradient for x0 is computed in the forward pass, so
    it can be taken once, by `backward()`, and not differentiated again. Raises ValueError for an unknown name.
    """
    if distance not in DISTANCES:
        raise ValueError(f"unknown distance {distance!r}; choose one of {', '.join(DISTANCES)}")
    if gradient not in ("exact", "exact_sequential", "detached"):
        raise ValueError(f"unknown gradient {gradient!r}; choose exact, exact_sequential or detached")
    if huber_c is None:
        huber_c = default_huber_c(x0)

    if gradient == "exact":
        with torch.enable_grad():
            leaf = x0.detach().requires_grad_()
            x = _diffuse(leaf, noise, sigma)
            prediction, target = assistant(x, sigma), reference(x, sigma)
            u = prediction - target
            w = _weight(weight, sigma, x0, u, target)
            loss = -w * _dot(distance_gradient(distance, u, huber_c), prediction - leaf)
            (slope,) = torch.autograd.grad(loss.sum(), leaf)
        return _attach(loss, slope, x0)

    x = _diffuse(x0.detach(), noise, sigma)
    with torch.no_grad():
        target = reference(x, sigma)
    # In the sequential form the assistant's graph is kept from this one pass, and freed before the reference is run again.
    with torch.set_grad_enabled(gradient == "exact_sequential"):
        x.requires_grad_(gradient == "exact_sequential")
        prediction = assistant(x, sigma)
    u, v = (prediction - target).detach(), (prediction - x0).detach()
    w = _weight(weight, sigma, x0, u, target)
    d_prime = distance_gradient(distance, u, huber_c)
    slope = expand(w, x0) * d_prime
    if gradient == "exact_sequential":
        # With H = d''(u): dL/dx = -w [J_psi^T (H v + d') - J_ref^T H v], and dL/dx0 = dL/dx + w d'.
        hv = hessian_vector_product(distance, u, v, huber_c)
        (from_assistant,) = torch.autograd.grad(prediction, x, hv + d_prime)
        del prediction
        with torch.enable_grad():
            (from_reference,) = torch.autograd.grad(reference(x, sigma), x, hv)
        slope = slope - expand(w, x0) * (from_assistant - from_reference)
    return _attach(-w * _dot(d_prime, v), slope, x0)


def cfg_reward_loss(
    x0: Tensor, noise: Tensor, sigma: Tensor, *, conditional: Denoiser, unconditional: Denoiser, weight: Weight = None
) -> Tensor:
    """Classifier-free guidance as a reward, `-w(sigma) sg[D_ref(x|c) - D_ref(x|null)]^T x` (DI++ eq. 3.5, DI* Theorem 3.2).

    Descending it raises log p(c|x). DI*'s eq. 3.5 and listing print the opposite sign, which lowers it. Multiply by
    alpha_cfg = g - 1: for a weight that does not depend on the reference, `ikl_loss` against an unguided reference plus
    this equals `ikl_loss` against one guided at scale g (DI++ Theorem 3.4). A callable weight is given `(sigma, x0,
    conditional - unconditional, conditional)`. Shapes: x0 and noise `[B, ...]`, sigma `[B]`; returns `[B]`.
    """
    x = _diffuse(x0, noise, sigma)
    with torch.no_grad():
        target = conditional(x, sigma)
        direction = target - unconditional(x, sigma)
    return -_weight(weight, sigma, x0, direction, target) * _dot(direction, x)


def guided(conditional: Denoiser, unconditional: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance inside the reference: `D(null) + g (D(c) - D(null))`; g = 1 is no guidance."""
    if scale == 1.0:
        return conditional

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        base = unconditional(x, sigma)
        return base + scale * (conditional(x, sigma) - base)

    return denoiser


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _diffuse(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    return x0 + expand(sigma, x0) * noise


def _weight(weight: Weight, sigma: Tensor, x0: Tensor, u: Tensor, target: Tensor) -> Tensor:
    if weight is None:
        return torch.ones_like(sigma)
    return (weight(sigma, x0.detach(), u.detach(), target.detach()) if callable(weight) else weight).detach()


def _attach(value: Tensor, slope: Tensor, x0: Tensor) -> Tensor:
    """`[B]` with the given value, whose gradient with respect to x0 is `slope` and which leads nowhere else."""
    through = _dot(slope.detach(), x0)
    return value.detach() + (through - through.detach())


def _inverse_l1(sigma: Tensor, x0: Tensor, u: Tensor, target: Tensor) -> Tensor:
    return 1 / (x0 - target).abs().flatten(1).sum(1).clamp_min(1e-8)


def _inverse_l2(sigma: Tensor, x0: Tensor, u: Tensor, target: Tensor) -> Tensor:
    return 1 / (x0 - target).flatten(1).norm(dim=1).clamp_min(1e-8)


def _edm(sigma: Tensor, x0: Tensor, u: Tensor, target: Tensor) -> Tensor:
    return (sigma**2 + 1) / sigma**2


#: Weights by name, for configs.
WEIGHTS: dict[str, Weight] = {
    "constant": None,
    "edm": _edm,  # Karras et al. 2022, table 1, at sigma_data = 1; DI++ eq. C.7
    "dmd": _inverse_l1,  # DMD: a mean over C, H, W divided by mean |x0 - D_ref(x)|
    "inverse_norm": _inverse_l2,  # 1 / ||x0 - D_ref(x)||: one unit of step per picture, whatever its size
}

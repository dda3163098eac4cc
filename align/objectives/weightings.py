"""Weightings w(sigma), by name."""

from collections.abc import Callable

import torch
from torch import Tensor

#: `[B]`, or a function `(sigma [B], x0, u, reference(x)) -> [B]`. Never differentiated. None is 1.
Weight = Tensor | Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None


def weight_of(weight: Weight, sigma: Tensor, x0: Tensor, u: Tensor, target: Tensor) -> Tensor:
    """A weight's values, `[B]`, without a graph."""
    if weight is None:
        return torch.ones_like(sigma)
    return (weight(sigma, x0.detach(), u.detach(), target.detach()) if callable(weight) else weight).detach()


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
    "inverse_norm": _inverse_l2,  # 1 / ||x0 - D_ref(x)||: less for what is far from the reference, as DMD's
}

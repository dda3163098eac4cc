"""Distances d(u) between two score functions, by name. A new one is a new entry here:
its derivatives are taken for it.
"""

from collections.abc import Callable

from torch import Tensor
from torch.func import grad, jvp, vmap

#: name -> d(u, c) of one sample u: [...] to a scalar; c > 0 is a scale in the units of u, used by those that have one.
DISTANCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "l2": lambda u, c: u.square().sum(),
    "pseudo_huber": lambda u, c: (u.square().sum() + c**2).sqrt() - c,  # DI*, section 3.4
}


def default_huber_c(u: Tensor) -> float:
    """0.00054 * sqrt(C*H*W): improved consistency training's choice (Song & Dhariwal 2023), taken over here; no source
    on DI* or SIM publishes one.
    """
    return 0.00054 * u[0].numel() ** 0.5


def distance_gradient(name: str, u: Tensor, c: float) -> Tensor:
    """d'(u) for each sample of u: [B, ...]. Differentiable in u."""
    return vmap(grad(DISTANCES[name]), in_dims=(0, None))(u, c)


def hessian_vector_product(name: str, u: Tensor, v: Tensor, c: float) -> Tensor:
    """d''(u) v for each sample of u and v: [B, ...]."""
    return jvp(lambda point: distance_gradient(name, point, c), (u,), (v,))[1]

"""Distributions whose denoisers are known in closed form: what the losses are checked against.

An image is a point of D dimensions, `x: [B, D]`, and `sigma: [B]` is the noise added to it. Every formula is that of
the noised density `p_sigma = p * N(0, sigma^2 I)`; at `sigma = 0` it is that of p itself.
"""

import math
from dataclasses import dataclass

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor


class Gaussian:
    """N(mean, covariance). mean: `[D]`; covariance: `[D, D]`, symmetric, positive semi-definite.

    Kept by its principal axes, along which noise only adds to the variances: one factorisation
    serves every sigma of a batch.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean = mean
        self.variances, self.axes = torch.linalg.eigh(covariance)

    def denoiser(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The posterior mean `E[x0 | x]`, `[B, D]`."""
        along, variances = self._along_axes(x, sigma)
        return self.mean + (along * (self.variances / variances)) @ self.axes.T

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The gradient of `log p_sigma(x)`, `[B, D]`."""
        along, variances = self._along_axes(x, sigma)
        return -(along / variances) @ self.axes.T

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """`log p_sigma(x)`, `[B]`."""
        along, variances = self._along_axes(x, sigma)
        return -0.5 * (along**2 / variances + (2 * math.pi * variances).log()).sum(1)

    def _along_axes(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return (x - self.mean) @ self.axes, self.variances + sigma[:, None] ** 2


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians. weights: `[K]`, positive, sum 1."""

    weights: Tensor
    components: tuple[Gaussian, ...]

    def log_posterior(self, x: Tensor, sigma: Tensor) -> Tensor:
        """`log p_sigma(k | x)`, the component that x came from, `[B, K]`."""
        return self._joint(x, sigma).log_softmax(1)

    def denoiser(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The posterior mean `E[x0 | x]`, `[B, D]`."""
        return self._average([component.denoiser(x, sigma) for component in self.components], x, sigma)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The gradient of `log p_sigma(x)`, `[B, D]`."""
        return self._average([component.score(x, sigma) for component in self.components], x, sigma)

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """`log p_sigma(x)`, `[B]`."""
        return self._joint(x, sigma).logsumexp(1)

    def _joint(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.weights.log() + torch.stack([component.log_prob(x, sigma) for component in self.components], 1)

    def _average(self, values: list[Tensor], x: Tensor, sigma: Tensor) -> Tensor:
        return torch.einsum("bk,kbd->bd", self.log_posterior(x, sigma).exp(), torch.stack(values))


def normal_grid(dimensions: int, order: int) -> tuple[Tensor, Tensor]:
    """Points `[N, dimensions]` and probabilities `[N]` that integrate against N(0, I): exactly, for polynomials of
    degree below 2 * order in each variable. Points that would not count in double precision are left out.
    """
    points, weights = (torch.from_numpy(values) for values in hermegauss(order))
    probability = torch.cartesian_prod(*[weights / weights.sum()] * dimensions).prod(1)
    counts = probability > 1e-12
    return torch.cartesian_prod(*[points] * dimensions)[counts], probability[counts]

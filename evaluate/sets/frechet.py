"""The Fréchet distance between two sets of features, from moments that can be gathered in parts and merged."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """n, mean `[D]` and scatter `[D, D]` (sum of outer products about the mean) of features, in float64."""

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Of features `[N, D]`."""
        wide = features.detach().double()
        mean = wide.mean(0)
        centred = wide - mean
        return cls(len(wide), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of the union (Chan, Golub and LeVeque 1979)."""
        n, delta = self.n + other.n, other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(delta, delta) * (self.n * other.n / n)
        return Moments(n, self.mean + delta * (other.n / n), scatter)

    @property
    def covariance(self) -> Tensor:
        """Unbiased, `[D, D]`."""
        return self.scatter / (self.n - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """`||mu_a - mu_b||^2 + tr(S_a + S_b - 2 (S_a S_b)^{1/2})` (Heusel et al. 2017, eq. 6); >= 0, 0 for equal moments.

    The trace of the root is that of `(R S_b R)^{1/2}` with `R = S_a^{1/2}`, a symmetric problem that needs no complex root.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp_min(0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(distance.item(), 0.0)

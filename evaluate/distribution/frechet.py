"""The Fréchet distance between two sets of features, from moments that can be gathered in parts and merged."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evaluate.distribution import DistributionMetric, Estimate
from evaluate.distribution.jackknife import group_of, jackknife
from evaluate.distribution.samples import Sample, another_reference, too_few

#: Images whose moments are taken together.
PENDING = 1024

#: Images as `DistributionMetric.update` takes them -> features [B, D].
Features = Callable[[Tensor | Sequence[Tensor]], Tensor]


@dataclass(frozen=True, eq=False)
class Moments:
    """n, mean `[D]` and scatter `[D, D]` (sum of outer products about the mean) of features, in float64.

    sha256: of what they are the moments of, '' where nobody asks. counted: whether n is known; else it is 2.
    """

    n: int
    mean: Tensor
    scatter: Tensor
    sha256: str = ""
    counted: bool = True

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

    @functools.cached_property
    def factor(self) -> Tensor:
        """Some F `[D, D]` with F F^T the covariance: Cholesky's, or the symmetric root of
        one that is singular to rounding.
        """
        factor, failed = torch.linalg.cholesky_ex(self.covariance)
        if not failed:
            return factor
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def frechet_distance(a: Moments, b: Moments) -> float:
    """`||mu_a - mu_b||^2 + tr(S_a + S_b - 2 (S_a S_b)^{1/2})` (Heusel et al. 2017, eq. 6); >= 0, 0 for equal moments.

    S_a S_b has the eigenvalues of F^T S_a F, F F^T = S_b, which is symmetric: the trace of the root is the sum of their
    roots. F is kept with b, so that a reference pays for it once.
    """
    cross = torch.linalg.eigvalsh(b.factor.T @ a.covariance @ b.factor).clamp_min(0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(distance.item(), 0.0)


def union(parts: Iterable[Moments]) -> Moments:
    """Moments of all `parts`, one at least, together."""
    return functools.reduce(Moments.merge, parts)


def frechet_statistic(images: Sample, reference: Sample) -> Callable[[int | None], float]:
    """The distance between two samples, without a group of prompts on either side."""
    sides = [
        {group: Moments.of(side.features[side.groups == group]) for group in side.groups.unique().tolist()}
        for side in (images, reference)
    ]

    def distance(left_out: int | None) -> float:
        a, b = (union(part for group, part in parts.items() if group != left_out) for parts in sides)
        return frechet_distance(a, b)

    return distance


class FrechetMetric(DistributionMetric):
    """Fréchet distance of images' features to a reference's moments.

    features: images, as `update` takes them -> `[B, D]`. reference: gives the reference's moments, which may take long
    to measure: it is asked when the distance is. n_images, n_real: how many images the protocol takes, and how many its
    reference has, None for any number. state: moments by group of prompts.
    """

    def __init__(
        self,
        protocol: str,
        features: Features,
        reference: Callable[[], Moments],
        *,
        n_images: int | None,
        n_real: int | None = None,
        weights_sha256: str,
    ):
        self.protocol, self.features, self.reference, self.n_images = protocol, features, reference, n_images
        self.n_real, self.weights_sha256 = n_real, weights_sha256
        self._moments: dict[int, Moments] = {}
        self._pending: tuple[tuple[Tensor, Tensor], ...] = ()

    @property
    def state(self) -> dict[int, Moments]:
        """Moments by group."""
        self._settle()
        return self._moments

    @state.setter
    def state(self, moments: dict[int, Moments]) -> None:
        self._moments, self._pending = moments, ()

    @torch.no_grad()
    def update(self, images: Tensor | Sequence[Tensor], prompts: Sequence[str]) -> None:
        """Add images' features to their prompts' groups."""
        if len(images) != len(prompts):
            raise ValueError(
                f"{self.protocol}: {len(images)} images but {len(prompts)} prompts; give one prompt per image"
            )
        groups = torch.tensor([group_of(prompt) for prompt in prompts])
        self._pending = (*self._pending, (self.features(images).cpu(), groups))
        if sum(len(rows) for rows, _ in self._pending) >= PENDING:
            self._settle()

    def _settle(self) -> None:
        """Merging moments costs D^2 however few images they are of, so it is done for many images together."""
        if self._pending:
            features, groups = (torch.cat(parts) for parts in zip(*self._pending, strict=True))
            self._pending = ()
            self._add({group: Moments.of(features[groups == group]) for group in groups.unique().tolist()})

    def merge(self, other: DistributionMetric) -> None:
        """Add another's moments."""
        assert self.protocol == other.protocol, f"{self.protocol} cannot take in {other.protocol}"
        self._add(other.state)

    def _add(self, parts: Mapping[int, Moments]) -> None:
        moments = self.state
        self._moments = {
            **moments,
            **{group: moments[group].merge(part) if group in moments else part for group, part in parts.items()},
        }

    def compute(self) -> Estimate:
        """The distance; its note says where images are too few for the features' dimension or the protocol."""
        counts = {group: self.state[group].n for group in sorted(self.state)}
        n = sum(counts.values())
        if n < 2:
            raise ValueError(f"{self.protocol}: {n} images; a covariance needs at least 2")
        reference = self.reference()
        width = len(reference.mean)

        def distance(left_out: int | None) -> float:
            return frechet_distance(union(self.state[group] for group in counts if group != left_out), reference)

        estimate = jackknife(counts, distance, bounds=(0.0, math.inf))
        deficient = f"rank-deficient: {n:,} images for {width:,} dimensions, so the value is far too high"
        notes = [estimate.note, deficient if n <= width else "", too_few(n, self.n_images)]
        if reference.counted:
            few = f"the reference's {reference.n:,} images are too few for {width:,} dimensions"
            notes += [few if reference.n <= width else "", another_reference(reference.n, self.n_real)]
        return replace(estimate, note="; ".join(filter(None, notes)), reference_sha256=reference.sha256)

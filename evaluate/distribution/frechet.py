"""The Fréchet distance between two sets of features, from moments that can be gathered in parts and merged."""

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluate.distribution import DistributionMetric, Estimate, t_interval

#: Parts of a set, each left out once for the interval.
GROUPS = 10
#: Images whose moments are taken together.
PENDING = 1024

#: Images as `DistributionMetric.update` takes them -> features [B, D].
Features = Callable[[Tensor | Sequence[Tensor]], Tensor]


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


def group_of(prompt: str) -> int:
    """Which of GROUPS a prompt's images belong to, whatever the process or order they come in."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % GROUPS


def jackknife(parts: Mapping[int, int], distance: Callable[[int | None], float]) -> Estimate:
    """The distance of a set that falls into groups, with an interval for it.

    parts: images by group. distance: the distance without one group, or of all for None. The interval is the
    delete-a-group jackknife for unequal groups (Busing, Meijer and van der Leeden 1999) with Student's t of one degree
    fewer than there are groups. Prompts stay whole, so that it is right for several images per prompt. It says where
    the distance of another n images would lie. It does not remove the distance's bias, which falls as 1/n: compare only
    equal n (Chong and Forsyth 2020).
    """
    n, value = sum(parts.values()), distance(None)
    if len(parts) < 2 or min(n - part for part in parts.values()) < 2:
        return Estimate(value, math.nan, math.nan, n, "no interval: too few prompts")
    shares = {group: n / part for group, part in parts.items()}
    pseudo = {group: h * value - (h - 1) * distance(group) for group, h in shares.items()}
    # Busing et al.'s estimate is the pseudo-values' mean weighted by 1 / h.
    centre = sum(pseudo[group] / h for group, h in shares.items())
    variance = sum((pseudo[group] - centre) ** 2 / (h - 1) for group, h in shares.items()) / len(parts)
    low, high = t_interval(value, math.sqrt(variance), len(parts) - 1)
    return Estimate(value, max(low, 0.0), high, n)


class FrechetMetric(DistributionMetric):
    """Fréchet distance of images' features to a reference's moments.

    features: images, as `update` takes them -> `[B, D]`. reference: gives the reference's moments, which may
    take long to measure: it is asked when the distance is. n_images: how many images the protocol takes.
    state: moments by group of prompts.
    """

    def __init__(
        self, protocol: str, features: Features, reference: Callable[[], Moments], *, n_images: int, weights_sha256: str
    ):
        self.protocol, self.features, self.reference, self.n_images = protocol, features, reference, n_images
        self.weights_sha256 = weights_sha256
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

        estimate = jackknife(counts, distance)
        notes = [estimate.note] if estimate.note else []
        if n <= width:
            notes.append(f"rank-deficient: {n:,} images for {width:,} dimensions, so the value is far too high")
        if n != self.n_images:
            notes.append(f"{n:,} images where the protocol takes {self.n_images:,}")
        return Estimate(estimate.value, estimate.low, estimate.high, n, "; ".join(notes))

"""Improved precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

A ball around each image reaches to its k-th nearest neighbour of the same side, itself not counted; k is 3 for
precision and recall, 5 for density and coverage. Precision: the share of generated images that lie in a real image's
ball. Recall: of real ones in a generated one's. Density: in how many real balls a generated image lies, over k.
Coverage: the share of real images in whose ball a generated one lies. All grow or fall with the numbers of images:
compare only equal ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evaluate.distribution import DistributionMetric
from evaluate.distribution.fd_shapes import renders
from evaluate.distribution.fid import DATASETS
from evaluate.distribution.jackknife import LeaveOut
from evaluate.distribution.reference import make_reference
from evaluate.distribution.samples import Sample, SampleMetric
from evaluate.features import inception, shapes_clip

#: Rows of a matrix of distances at a time.
ROWS = 256


def squared(x: Tensor, y: Tensor) -> Tensor:
    """Square distances `[N, M]` of features `[N, D]` and `[M, D]`."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_min(0)


@dataclass(frozen=True, eq=False)
class Nearest:
    """Square distances `[N, G, k]` of each image to the k nearest of each group; infinite where a group has fewer."""

    distances: Tensor
    groups: Tensor

    @classmethod
    def of(cls, points: Sample, others: Sample, k: int) -> "Nearest":
        """The same sample twice: an image is no neighbour of itself."""
        x, y, groups, rows = points.features.double(), others.features.double(), others.groups.unique(), []
        for first in range(0, len(x), ROWS):
            distances = squared(x[first : first + ROWS], y)
            if points is others:
                distances[:, first:].fill_diagonal_(math.inf)
            rows.append(torch.stack([_smallest(distances[:, others.groups == group], k) for group in groups], 1))
        return cls(torch.cat(rows), groups)

    def kth(self, left_out: int | None) -> Tensor:
        """The k-th smallest of each image `[N]`, without a group."""
        kept = self.distances if left_out is None else self.distances[:, self.groups != left_out]
        k = self.distances.shape[2]
        return _smallest(kept.flatten(1), k)[:, -1]


def _smallest(distances: Tensor, k: int) -> Tensor:
    found = distances.topk(min(k, distances.shape[1]), largest=False).values
    return F.pad(found, (0, k - found.shape[1]), value=math.inf)


def balls_around(points: Sample, centres: Sample, k: int) -> Callable[[int | None], Tensor]:
    """In how many balls of `centres` each of `points` lies, of those of both that are left without a group."""
    nearest, counts = Nearest.of(centres, centres, k), {}
    radii = {}
    for left_out in (None, *centres.groups[centres.groups >= 0].unique().tolist()):
        radius = nearest.kth(left_out)
        # Nothing is at a distance below 0; a ball without end has too few neighbours left to be one.
        radii[left_out] = radius.where(centres.without(left_out) & radius.isfinite(), -1)
    x, y = points.features.double(), centres.features.double()
    blocks = []
    for part in x.split(ROWS):
        distances = squared(part, y)
        blocks.append([(distances < each).sum(1) for each in radii.values()])
    counts = {left_out: torch.cat(parts) for left_out, parts in zip(radii, zip(*blocks, strict=True), strict=True)}

    def inside(left_out: int | None) -> Tensor:
        return counts[left_out if left_out in counts else None][points.without(left_out)].double()

    return inside


def precision(images: Sample, reference: Sample, *, k: int) -> LeaveOut:
    """The share of images in a ball of the reference."""
    inside = balls_around(images, reference, k)
    return lambda left_out: (inside(left_out) > 0).double().mean().item()


def recall(images: Sample, reference: Sample, *, k: int) -> LeaveOut:
    """The share of the reference in a ball of the images."""
    return precision(reference, images, k=k)


def density(images: Sample, reference: Sample, *, k: int) -> LeaveOut:
    """In how many balls of the reference an image lies, over k."""
    inside = balls_around(images, reference, k)
    return lambda left_out: inside(left_out).mean().item() / k


def coverage(images: Sample, reference: Sample, *, k: int) -> LeaveOut:
    """The share of the reference's balls that hold an image."""
    radii, nearest = Nearest.of(reference, reference, k), Nearest.of(reference, images, 1)

    def value(left_out: int | None) -> float:
        covered = nearest.kth(left_out) < radii.kth(left_out)
        return covered[reference.without(left_out)].double().mean().item()

    return value


#: What it is, the function, k, and the most it can be.
STATISTICS = {
    "precision": ("share of images in a ball around a real one", precision, 3, 1.0),
    "recall": ("share of real images in a ball around a generated one", recall, 3, 1.0),
    "density": ("balls around real images that an image lies in, over k", density, 5, math.inf),
    "coverage": ("share of balls around real images that hold an image", coverage, 5, 1.0),
}
REFERENCES = {f"{name}/{data}": protocol.real for name in STATISTICS for data, protocol in DATASETS.items()}
VARIANTS = {
    f"{name}/{data}": f"{text}, k = {k}, {on}; higher is better"
    for name, (text, _, k, _) in STATISTICS.items()
    for data, on in (
        *(
            (data, f"on Inception, images prepared as fid/{data} does, against {p.real}")
            for data, p in DATASETS.items()
        ),
        ("shapes-clip", "on the features of shapes/clip, renders of the same captions in place of real images"),
    )
}
VERIFIED_BY = dict.fromkeys(VARIANTS, "prdc 0.2")


def load(name: str, device: Any, weights: str | None, reference: str | None) -> DistributionMetric:
    """weights: those of `fid` or of `fd-shapes`, whose features these are."""
    kind, _, data = name.partition("/")
    _, statistic, k, most = STATISTICS[kind]
    if reference is None:
        features = shapes_clip.extractor(device, weights)
        make, n_images, n_real = renders(features), None, None
    else:
        protocol = DATASETS[data]
        features = inception.extractor(device, weights, protocol.prepare)
        make = make_reference(reference, name, protocol.real, features)
        n_images, n_real = protocol.n_images, protocol.n_real
    return SampleMetric(
        name,
        features,
        partial(statistic, k=k),
        make,
        weights_sha256=features.weights_sha256,
        n_images=n_images,
        n_real=n_real,
        least=k + 1,
        bounds=(0.0, most),
    )

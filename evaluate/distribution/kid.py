"""KID (Binkowski et al. 2018): the unbiased squared maximum mean discrepancy under the kernel (x . y / D + 1)^3.

Against a folder of images it is the mean over 100 subsets of 1,000 images of each side, seeded and drawn as
torch-fidelity draws them, which has no bias however few the images: it may be negative. Where there are fewer than
1,000 the subsets are as large as they can be. The interval leaves a group's images out of the same subsets.

Against renders of the same captions it is of all pairs of two captions: what images of one caption and its renders have
in common would pull it below 0.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluate.distribution import DistributionMetric
from evaluate.distribution.fd_shapes import renders
from evaluate.distribution.fid import DATASETS
from evaluate.distribution.jackknife import MANY_GROUPS, LeaveOut
from evaluate.distribution.mmd import KernelSums
from evaluate.distribution.reference import make_reference
from evaluate.distribution.samples import Sample, SampleMetric
from evaluate.features import inception, shapes_clip

REFERENCES = {f"kid/{name}": protocol.real for name, protocol in DATASETS.items()}
VARIANTS = {
    name: f"KID on Inception, images prepared as f{name[1:]} does, against {real}; lower is better"
    for name, real in REFERENCES.items()
} | {"kid/shapes-clip": "KID to renders of the same captions, on the features of shapes/clip; lower is better"}
VERIFIED_BY = {**dict.fromkeys(REFERENCES, "torch-fidelity 0.4.0"), "kid/shapes-clip": "formula"}

SUBSETS, SIZE = 100, 1000
#: torch-fidelity's.
SEED = 2020


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """`[N, D]` and `[M, D]` -> `[N, M]`."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid(images: Sample, reference: Sample, *, size: int = SIZE) -> LeaveOut:
    """KID, without a group of prompts on either side. size: of a subset."""
    if reference.units is not None:
        whole = KernelSums.of(kernel, images, reference, MANY_GROUPS)
        return lambda left_out: whole.mmd(left_out, unbiased=True).item()
    # The generator of old, as torch-fidelity has.
    rng = np.random.RandomState(SEED)
    size = min(size, len(images), len(reference))

    def subset(side: Sample) -> Sample:
        return side.at(torch.from_numpy(rng.choice(len(side), size, replace=False)))

    sums = KernelSums.stack(
        [KernelSums.of(kernel, subset(images), subset(reference), MANY_GROUPS) for _ in range(SUBSETS)]
    )
    return lambda left_out: sums.mmd(left_out, unbiased=True).nanmean().item()


def note(images: int, reference: int) -> str:
    """What to say of smaller subsets."""
    size = min(images, reference)
    return f"subsets of {size:,} images where the protocol takes {SIZE:,}" if size < SIZE else ""


def load(name: str, device: Any, weights: str | None, reference: str | None) -> DistributionMetric:
    """weights: those of `fid` or of `fd-shapes`, whose features these are."""
    if reference is None:
        features = shapes_clip.extractor(device, weights)
        make, n_images, n_real, say = renders(features), None, None, lambda images, reference: ""
    else:
        protocol = DATASETS[name.removeprefix("kid/")]
        features = inception.extractor(device, weights, protocol.prepare)
        make = make_reference(reference, name, protocol.real, features)
        n_images, n_real = protocol.n_images, protocol.n_real
        say = note
    return SampleMetric(
        name,
        features,
        kid,
        make,
        weights_sha256=features.weights_sha256,
        n_images=n_images,
        n_real=n_real,
        groups=MANY_GROUPS,
        note=say,
    )

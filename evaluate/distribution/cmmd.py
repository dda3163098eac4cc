"""CMMD (Jayasumana et al. 2024): 1,000 x the squared maximum mean discrepancy of CLIP's features, biased, under a
Gaussian kernel of bandwidth 10. It needs fewer images than FID, and assumes no normal distribution.

Any folder of real images is the reference; the published figures are against 30,000 of COCO's val2014.
"""

from typing import Any

from torch import Tensor

from evaluate.distribution import OF_YOUR_CHOICE, DistributionMetric
from evaluate.distribution.jackknife import MANY_GROUPS, LeaveOut
from evaluate.distribution.mmd import KernelSums
from evaluate.distribution.reference import make_reference
from evaluate.distribution.samples import Sample, SampleMetric
from evaluate.features import clip_336

VARIANTS = {"cmmd": "CMMD on CLIP ViT-L/14 at 336 pixels, to images of your choice; lower is better"}
REFERENCES = {"cmmd": OF_YOUR_CHOICE}
VERIFIED_BY = {"cmmd": "clip-mmd 0.0.2"}

SIGMA, SCALE = 10, 1000


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """`[N, D]` and `[M, D]` -> `[N, M]`."""
    squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return (-squared / (2 * SIGMA**2)).exp()


def cmmd(images: Sample, reference: Sample) -> LeaveOut:
    """CMMD, without a group of prompts."""
    sums = KernelSums.of(kernel, images, reference, MANY_GROUPS)
    return lambda left_out: SCALE * sums.mmd(left_out, unbiased=False).item()


def load(name: str, device: Any, weights: str | None, reference: str) -> DistributionMetric:
    """weights: a folder with CLIP's two files, in place of the hub's."""
    features = clip_336.extractor(device, weights)
    return SampleMetric(
        name,
        features,
        cmmd,
        make_reference(reference, name, REFERENCES[name], features),
        weights_sha256=features.weights_sha256,
        groups=MANY_GROUPS,
    )

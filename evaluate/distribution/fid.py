"""FID (Heusel et al. 2017) under named protocols: an image's way into FID's Inception, and the reference.

`fid/coco2014-30k`, `fid/coco-sdxl-10k`: as DMD2's code measures COCO (Yin et al. 2024): each image, generated or real,
is cropped to a centred square and resized by Lanczos to the protocol's size in 8 bits. `patch-fid/dmd2`: the same
code's patch FID: the centred 299 x 299 of an image as it is, where both edges have so many pixels; a smaller one is not
cropped. `fid/mjhq-30k`: images as they are, at 1024 x 1024, against playgroundai/MJHQ-30K. Its authors name the
resolution and not the resize; clean-fid's is what papers that say so use, and others use pytorch-fid, which gives other
numbers.

After that all are resized to 299 by clean-fid's `clean` mode.

weights: the published file of Inception's, fetched on first use. reference: the folder of real images, whose features
are kept, or a file of moments (`evaluate.distribution.reference`).
"""

from dataclasses import dataclass
from typing import Any

from evaluate.distribution import DistributionMetric
from evaluate.distribution.reference import frechet_metric
from evaluate.features import inception
from evaluate.features.inception import Preparation


@dataclass(frozen=True)
class Protocol:
    """prepare: an image's way to clean-fid's resize. n_images: generated ones. real: what the reference's folder holds,
    n_real images.

    size: in words.
    """

    prepare: Preparation
    n_images: int
    n_real: int
    real: str
    size: str


SDXL_10K = "the 10,000 images of DMD2's coco10k/subset"
#: What distances on Inception's features compare with.
DATASETS = {
    "coco2014-30k": Protocol(
        Preparation("square", 256), 30_000, 40_504, "all 40,504 images of COCO's val2014", "at 256 x 256"
    ),
    "coco-sdxl-10k": Protocol(Preparation("square", 512), 10_000, 10_000, SDXL_10K, "at 512 x 512"),
    "mjhq-30k": Protocol(Preparation(), 30_000, 30_000, "the 30,000 images of playgroundai/MJHQ-30K", "at 1024 x 1024"),
}
PROTOCOLS = {
    **{f"fid/{name}": protocol for name, protocol in DATASETS.items()},
    "patch-fid/dmd2": Protocol(Preparation("patch"), 10_000, 10_000, SDXL_10K, "cut to their central 299 x 299"),
}
VARIANTS = {
    name: f"FID of {p.n_images:,} images {p.size} against {p.real}; lower is better" for name, p in PROTOCOLS.items()
}
REFERENCES = {name: protocol.real for name, protocol in PROTOCOLS.items()}
VERIFIED_BY = dict.fromkeys(VARIANTS, "clean-fid 0.1.35")


def load(name: str, device: Any, weights: str | None, reference: str) -> DistributionMetric:
    """weights: a local copy of Inception's."""
    protocol = PROTOCOLS[name]
    features = inception.extractor(device, weights, protocol.prepare)
    return frechet_metric(
        name, reference, features, real=protocol.real, n_images=protocol.n_images, n_real=protocol.n_real
    )

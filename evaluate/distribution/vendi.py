"""The Vendi score (Friedman and Dieng 2023): how many images that are wholly unlike a set is worth, from 1 to n.

exp of the entropy of the eigenvalues of X X^T / n, the rows of X being features of unit norm. Of all images together,
or of each prompt's and then the mean over prompts, which tells how a model varies one prompt: from 1 to a prompt's
number of images, so compare only equal ones.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evaluate.distribution import DistributionMetric
from evaluate.distribution.diversity import WithinPrompt
from evaluate.distribution.fid import DATASETS
from evaluate.distribution.jackknife import GROUPS, MANY_GROUPS, LeaveOut
from evaluate.distribution.samples import Sample, SampleMetric
from evaluate.features import Extractor, inception, shapes_clip

WITHIN = "/within-prompt"
VARIANTS = {
    "vendi/shapes-clip": "Vendi score of all images, on the features of shapes/clip; higher is more diverse",
    f"vendi/shapes-clip{WITHIN}": "mean over prompts of the Vendi score of a prompt's images, on the same features",
    "vendi/inception": "Vendi score of all images, on Inception, images prepared as fid/coco2014-30k does",
    f"vendi/inception{WITHIN}": "mean over prompts of the Vendi score of a prompt's images, on the same features",
}
VERIFIED_BY = dict.fromkeys(VARIANTS, "vendi-score 0.0.3")


def vendi(features: Tensor) -> float:
    """Of features `[n, D]`. The eigenvalues other than 0 are those of X^T X / n too, which is smaller where n > D."""
    x = F.normalize(features.double(), dim=1)
    square = x @ x.T if len(x) <= x.shape[1] else x.T @ x
    values = torch.linalg.eigvalsh(square / len(x)).clamp_min(0)
    return torch.special.entr(values).sum().exp().item()


def vendi_statistic(images: Sample) -> LeaveOut:
    """Without a group of prompts."""
    return lambda left_out: vendi(images.features[images.without(left_out)])


def load(name: str, device: Any, weights: str | None, reference: str | None) -> DistributionMetric:
    """weights: those of `fid` or of `fd-shapes`, whose features these are."""
    on_shapes = name.startswith("vendi/shapes-clip")
    features: Extractor = (
        shapes_clip.extractor(device, weights)
        if on_shapes
        else inception.extractor(device, weights, DATASETS["coco2014-30k"].prepare)
    )
    if name.endswith(WITHIN):
        return WithinPrompt(name, features, vendi, weights_sha256=features.weights_sha256)
    groups = MANY_GROUPS if on_shapes else GROUPS
    return SampleMetric(
        name,
        features,
        vendi_statistic,
        weights_sha256=features.weights_sha256,
        groups=groups,
        bounds=(1.0, math.inf),
    )

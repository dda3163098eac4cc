"""`fd-shapes`: the Fréchet distance of images to renders of the same captions, on the features of `shapes/clip`.

Never call it FID. It grows as the images get fewer (64 features): compare only sets of the same captions.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluate.distribution import DistributionMetric
from evaluate.distribution.frechet import frechet_statistic
from evaluate.distribution.reference import kept
from evaluate.distribution.samples import MakeReference, Sample, SampleMetric
from evaluate.features import Extractor, shapes_clip
from prompts.io.files import text_sha256

VARIANTS = {
    "fd-shapes": "Fréchet distance to renders of the same captions, on the features of shapes/clip; lower is better"
}
VERIFIED_BY = {"fd-shapes": "formula"}

#: Renders per caption, so that the reference's own sampling error is small.
RENDERS = 8


def renders(features: Extractor, *, seed: int = 0) -> MakeReference:
    """RENDERS renders of each caption, drawn from `seed`, in the captions' groups: they are left out together."""

    def reference(captions: Sequence[str], images: Sample) -> Sample:
        from prompts.shapes import grammar, render, renderer

        repeated = list(captions) * RENDERS

        def rendered() -> Tensor:
            return features(torch.from_numpy(render(repeated, seed=seed)))

        def once() -> Tensor:  # it takes longer than all else that is measured of a small generator
            code = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in (grammar, renderer)]
            return kept(features, text_sha256(json.dumps([seed, repeated, code])), rendered)

        units = None if images.units is None else images.units.repeat(RENDERS)
        return Sample(features.latest("renders", (seed, *repeated), once), images.groups.repeat(RENDERS), units)

    return reference


def load(name: str, device: Any, weights: str | None, reference: str | None) -> DistributionMetric:
    """weights: a folder with a CLIP, in place of the embedded one."""
    features = shapes_clip.extractor(device, weights)
    return SampleMetric(
        name,
        features,
        frechet_statistic,
        renders(features),
        weights_sha256=features.weights_sha256,
        bounds=(0.0, math.inf),
    )


def fd_shapes(images: Tensor, captions: Sequence[str], *, weights: str | None = None) -> float:
    """`fd-shapes` of images `[N, 3, 32, 32]` in [0, 1] of `captions`."""
    metric = load("fd-shapes", images.device, weights, None)
    metric.update(images, captions)
    return metric.compute().value

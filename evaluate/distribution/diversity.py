"""Diversity within a prompt: how unlike the images are that a model draws of one prompt from different noise.

For each prompt, the mean over its pairs of images of 1 - cosine of their features, that is one minus the mean
similarity score of Sadat et al. (2024, CADS), in [0, 2]; or of their LPIPS. Then the mean over prompts; 0 where noise
changes nothing. The interval is Student's t over prompts, which are what was sampled: images of one prompt are not
independent.

`diversity/lpips`: LPIPS as the package `lpips` computes it by default, AlexNet of version 0.1, images in [-1, 1],
resized to 512 x 512 by Lanczos as DMD2's code does for its diversity score; DMD2's own has another network, piq's
VGG16.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluate.distribution import DistributionMetric, Estimate
from evaluate.distribution.fid import DATASETS
from evaluate.distribution.jackknife import MANY_GROUPS, group_of, leave_out
from evaluate.features import inception, lpips, shapes_clip
from evaluate.images import as_bytes
from evaluate.stats import t_interval

VARIANTS = {
    "diversity/shapes-clip": (
        "mean 1 - cosine between images of a prompt, on the features of shapes/clip; higher is more diverse"
    ),
    "diversity/inception": "the same on FID's Inception, images prepared as fid/coco2014-30k does",
    "diversity/lpips": "mean LPIPS (AlexNet, v0.1) between images of a prompt, at 512 x 512; higher is more diverse",
}
VERIFIED_BY = {
    "diversity/shapes-clip": "formula",
    "diversity/inception": "formula",
    "diversity/lpips": "lpips 0.1.4",
}

SIZE = 512  # pixels a side for LPIPS


class WithinPrompt(DistributionMetric):
    """The mean over prompts of what a function says of a prompt's images.

    features: of a batch of images, a row for each. of_prompt: of at least two rows of one prompt, whose order means
    nothing. state: rows by prompt.
    """

    within_prompt = True

    def __init__(
        self,
        protocol: str,
        features: Callable[[Tensor | Sequence[Tensor]], Tensor],
        of_prompt: Callable[[Tensor], float],
        *,
        weights_sha256: str,
    ) -> None:
        self.protocol, self.features, self.of_prompt = protocol, features, of_prompt
        self.weights_sha256 = weights_sha256
        self.state: dict[str, tuple[Tensor, ...]] = {}

    @torch.no_grad()
    def update(self, images: Tensor | Sequence[Tensor], prompts: Sequence[str]) -> None:
        """Add images' rows to their prompts."""
        rows: dict[str, tuple[Tensor, ...]] = defaultdict(tuple)
        for prompt, row in zip(prompts, self.features(images), strict=True):
            rows[prompt] += (row,)
        self._add(rows)

    def merge(self, other: DistributionMetric) -> None:
        """Add another's rows."""
        assert self.protocol == other.protocol, f"{self.protocol} cannot take in {other.protocol}"
        self._add(other.state)

    def _add(self, rows: dict[str, tuple[Tensor, ...]]) -> None:
        self.state = {**self.state, **{prompt: self.state.get(prompt, ()) + more for prompt, more in rows.items()}}

    @torch.no_grad()
    def compute(self) -> Estimate:
        """The mean over prompts of at least two images; its note says how many had one."""
        several = {prompt: rows for prompt, rows in sorted(self.state.items()) if len(rows) > 1}
        if not several:
            raise ValueError(f"{self.protocol}: no prompt has two images; draw each from several seeds")
        values = torch.tensor([self.of_prompt(torch.stack(rows)) for rows in several.values()], dtype=torch.float64)
        group_by_prompt = [group_of(prompt, MANY_GROUPS) for prompt in several]
        groups, parts = torch.tensor(group_by_prompt), Counter[int]()
        for group, rows in zip(group_by_prompt, several.values(), strict=True):
            parts[group] += len(rows)
        left_out = leave_out(parts, lambda group: values[groups != group].mean().item(), MANY_GROUPS)
        count, value = len(values), values.mean().item()
        error = values.std().item() / math.sqrt(count) if count > 1 else math.nan
        single = len(self.state) - count
        note = f"{single:,} prompts of a single image left out" if single else ""
        return Estimate(value, *t_interval(value, error, count - 1), sum(parts.values()), note, left_out)


def mean_cosine_distance(features: Tensor) -> float:
    """1 - cosine, the mean over pairs of `[n, D]`: the sum over pairs of u_i . u_j is (|sum u|^2 - n) / 2."""
    units = torch.nn.functional.normalize(features.double(), dim=-1)
    n = len(units)
    return (1 - (units.sum(0).square().sum() - n) / (n * (n - 1))).item()


def at_512(images: Tensor | Sequence[Tensor]) -> Tensor:
    """uint8 `[B, 3, 512, 512]`."""
    whole = [Image.fromarray(as_bytes(image).permute(1, 2, 0).cpu().numpy()) for image in images]
    resized = [np.array(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)) for image in whole]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def load(name: str, device: Any, weights: str | None, reference: str | None) -> DistributionMetric:
    """weights: those of `fd-shapes` or of `fid`, whose features these are, or AlexNet's of torchvision.

    LPIPS keeps every image until it is computed: 0.8 MB each.
    """
    if name == "diversity/lpips":
        distance, digest = lpips.load_network(device, weights)
        return WithinPrompt(
            name, at_512, lambda images: distance(images.to(device).float() / 255).item(), weights_sha256=digest
        )
    features = (
        shapes_clip.extractor(device, weights)
        if name == "diversity/shapes-clip"
        else inception.extractor(device, weights, DATASETS["coco2014-30k"].prepare)
    )
    return WithinPrompt(name, features, mean_cosine_distance, weights_sha256=features.weights_sha256)

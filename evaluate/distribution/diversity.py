"""Diversity within a prompt: how unlike the images are that a model draws of one prompt from different noise.

For each prompt, the mean over its pairs of images of 1 - cosine of their features, that is one minus the mean
similarity score of Sadat et al. (2024, CADS); then the mean over prompts. In [0, 2], 0 where noise changes nothing. The
interval is Student's t over prompts, which are what was sampled: images of one prompt are not independent.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from evaluate.distribution import DistributionMetric, Estimate, fd_shapes, fid, t_interval
from evaluate.distribution.frechet import Features
from prompts.io.errors import UserError

VARIANTS = {
    "diversity/shapes-clip": (
        "mean 1 - cosine between images of a prompt, on the features of shapes/clip; higher is more diverse"
    ),
    "diversity/inception": "the same on FID's Inception, images prepared as fid/coco2014-30k does",
}
VERIFIED_BY = dict.fromkeys(VARIANTS, "formula")


class Diversity(DistributionMetric):
    """state: by prompt, how many images and the sum `[D]` of their unit features: all
    that the mean over pairs needs.
    """

    def __init__(self, protocol: str, features: Features, *, weights_sha256: str):
        self.protocol, self.features, self.weights_sha256 = protocol, features, weights_sha256
        self.state: dict[str, tuple[int, Tensor]] = {}

    @torch.no_grad()
    def update(self, images: Tensor | Sequence[Tensor], prompts: Sequence[str]) -> None:
        """Add images' features to their prompts' sums."""
        units = torch.nn.functional.normalize(self.features(images).double().cpu(), dim=-1)
        self._add((prompt, 1, unit) for prompt, unit in list(zip(prompts, units, strict=True)))

    def merge(self, other: DistributionMetric) -> None:
        """Add another's sums."""
        assert self.protocol == other.protocol, f"{self.protocol} cannot take in {other.protocol}"
        self._add((prompt, n, total) for prompt, (n, total) in other.state.items())

    def _add(self, rows: Iterable[tuple[str, int, Tensor]]) -> None:
        state = dict(self.state)
        for prompt, n, total in rows:
            before, sum_before = state.get(prompt, (0, torch.zeros_like(total)))
            state[prompt] = before + n, sum_before + total
        self.state = state

    def compute(self) -> Estimate:
        """The mean over prompts of at least two images; its note says how many had one."""
        several = [(n, total) for n, total in self.state.values() if n > 1]
        if not several:
            raise ValueError(f"{self.protocol}: no prompt has two images; draw each from several seeds")
        # sum over pairs of u_i . u_j = |sum u|^2 - n, for unit vectors
        means = torch.stack([1 - (total.square().sum() - n) / (n * (n - 1)) for n, total in several])
        value, count = means.mean().item(), len(several)
        error = means.std().item() / math.sqrt(count) if count > 1 else math.nan
        single = len(self.state) - count
        note = f"{single:,} prompts of a single image left out" if single else ""
        return Estimate(value, *t_interval(value, error, count - 1), sum(n for n, _ in several), note)


def load(name: str, device: Any, weights: str | None, reference: str | None) -> DistributionMetric:
    """weights: those of `fd-shapes` or of `fid`, whose features these are."""
    if reference:
        raise UserError(f"{name} compares images with each other; leave out {reference}")
    if name == "diversity/shapes-clip":
        features, digest = fd_shapes.encoder(device, weights)
    else:
        network, digest = fid.load_inception(device, weights)
        features = fid.features_of(network, fid.PROTOCOLS["fid/coco2014-30k"].size, device)
    return Diversity(name, features, weights_sha256=digest)

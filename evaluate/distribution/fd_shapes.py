"""`fd-shapes`: the Fréchet distance of images to renders of the same captions, on the features of `shapes/clip`.

Never call it FID. It grows as the images get fewer (64 features): compare only sets of the same captions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluate import embedded, scorers
from evaluate import weights as weight_files
from evaluate.distribution import DistributionMetric, Estimate
from evaluate.distribution.frechet import Features, Moments, frechet_distance, group_of, jackknife, union
from prompts.io.errors import UserError

VARIANTS = {
    "fd-shapes": "Fréchet distance to renders of the same captions, on the features of shapes/clip; lower is better"
}
VERIFIED_BY = {"fd-shapes": "formula"}

#: Renders per caption, so that the reference's own sampling error is small.
RENDERS = 8
CHUNK = 256


class ShapesDistance(DistributionMetric):
    """Images `[B, 3, 32, 32]` in [0, 1] against RENDERS renders of each caption, drawn from `seed` when it is computed.

    state: features `[1, D]` and caption of each image. The interval leaves out groups of captions, on both sides.
    """

    protocol = "fd-shapes"

    def __init__(self, features: Features, *, weights_sha256: str, seed: int = 0):
        self.features, self.weights_sha256, self.seed = features, weights_sha256, seed
        self.state: list[tuple[str, Tensor]] = []

    @torch.no_grad()
    def update(self, images: Tensor | Sequence[Tensor], prompts: Sequence[str]) -> None:
        """Add images' features."""
        self.state = [*self.state, *zip(prompts, self.features(images).split(1), strict=True)]

    def merge(self, other: DistributionMetric) -> None:
        """Add another's features."""
        self.state = [*self.state, *other.state]

    @torch.no_grad()
    def compute(self) -> Estimate:
        """The distance.

        Captions are sorted first, so that the same images meet the same renders in whatever order they came.
        """
        from prompts.shapes import render

        if len(self.state) < 2:
            raise ValueError(f"fd-shapes: {len(self.state)} images; a covariance needs at least 2")
        rows = sorted(self.state, key=lambda row: row[0])
        renders = torch.from_numpy(render([caption for caption, _ in rows] * RENDERS, seed=self.seed))
        rendered = self.features(renders)
        drawn, groups = torch.cat([row for _, row in rows]), torch.tensor([group_of(caption) for caption, _ in rows])
        parts = {
            group: (Moments.of(drawn[groups == group]), Moments.of(rendered[(groups == group).repeat(RENDERS)]))
            for group in groups.unique().tolist()
        }

        def distance(left_out: int | None) -> float:
            a, b = (union(pair[side] for group, pair in parts.items() if group != left_out) for side in (0, 1))
            return frechet_distance(a, b)

        return jackknife({group: pair[0].n for group, pair in parts.items()}, distance)


def load(name: str, device: Any, weights: str | None, reference: str | None) -> DistributionMetric:
    """weights: a folder with a CLIP, in place of the embedded one."""
    if reference:
        raise UserError(f"{name} draws its own reference; leave out {reference}")
    features, digest = encoder(device, weights)
    return ShapesDistance(features, weights_sha256=digest)


def encoder(device: Any, weights: str | None) -> tuple[Features, str]:
    """The features of `shapes/clip`, and the sha256 of its weights."""
    clip: Any = scorers.load("shapes/clip", device=device, weights=weights)

    @torch.no_grad()
    def features(images: Tensor | Sequence[Tensor]) -> Tensor:
        batch = images if isinstance(images, Tensor) else torch.stack(list(images))
        if batch.dtype == torch.uint8:
            batch = batch.float() / 255
        return torch.cat([clip.features(chunk.to(device)) for chunk in batch.split(CHUNK)]).cpu()

    folder = Path(weights) if weights else embedded.folder("shapes/clip")
    return features, weight_files.sha256(folder / "model.safetensors")


def fd_shapes(images: Tensor, captions: Sequence[str], *, weights: str | None = None) -> float:
    """`fd-shapes` of images `[N, 3, 32, 32]` in [0, 1] of `captions`."""
    metric = load("fd-shapes", images.device, weights, None)
    metric.update(images, captions)
    return metric.compute().value

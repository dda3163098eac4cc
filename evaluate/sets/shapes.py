"""`fd-shapes`: the Fréchet distance of pictures to renders of the same captions, on the features of `shapes/clip`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evaluate import scorers
from evaluate.scorers.shapes import DualEncoder
from evaluate.sets.frechet import Moments, frechet_distance

#: Renders a caption, so that the reference's own sampling error is small.
RENDERS = 8


@torch.no_grad()
def fd_shapes(pictures: Tensor, captions: Sequence[str], *, seed: int = 0, weights: str | None = None) -> float:
    """Pictures `[N, 3, 32, 32]` in [0, 1] against RENDERS renders of each caption; lower is better. Never call it FID.

    It grows as N shrinks (64 features): compare only sets of the same captions.
    """
    from prompts.shapes import render

    clip = scorers.load("shapes/clip", weights=weights)
    assert isinstance(clip, DualEncoder)
    renders = torch.from_numpy(render(list(captions) * RENDERS, seed=seed))
    given, reference = (torch.cat([clip.features(chunk) for chunk in x.split(256)]) for x in (pictures, renders))
    return frechet_distance(Moments.of(given), Moments.of(reference))

"""LAION Aesthetic predictor v2 (Schuhmann 2022, improved-aesthetic-predictor): a linear head on
CLIP ViT-L/14's image embedding.

Hub: `openai/clip-vit-large-patch14`, files `config.json` and `model.safetensors`, and the head
`camenduru/improved-aesthetic-predictor`, file `sac+logos+ava1-l14-linearMSE.pth`. Trained on ratings of
1 to 10; generated images score between 4 and 7. The prompt is not read. Version 1, another head and
another scale, is another protocol.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evaluate.preprocess import CLIP_224
from evaluate.scorers import Scorer
from evaluate.scorers._clip import regressor, transformers_clip
from evaluate.weights import Files

REPOSITORY, REVISION = "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"
# No commit of the head's repository is on record anywhere; the author's file is, by its
# hash, so that is what is pinned.
HEAD, HEAD_REVISION = "camenduru/improved-aesthetic-predictor", "main"
HEAD_FILE = "sac+logos+ava1-l14-linearMSE.pth"
HEAD_SHA256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"

VARIANTS = {"aesthetic/v2": "LAION Aesthetic v2 (sac+logos+ava1, linear), about 1 to 10; the prompt is not read"}
VERIFIED_BY = {"aesthetic/v2": "formula"}


class Aesthetic(Scorer):
    """The head's value of the unit-length image embedding."""

    def __init__(self, protocol: str, tower: Any, *, weights_sha256: str) -> None:
        super().__init__(protocol, CLIP_224, weights_sha256=weights_sha256)
        self.tower, self.head = tower, regressor(tower.config.projection_dim)

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Nothing, `[B, 0]`."""
        return {"none": torch.empty(len(prompts), 0)}

    def forward(self, pixels: Tensor, text: Mapping[str, Tensor]) -> Tensor:
        """The rating, `[B]`."""
        embedding = self.tower(pixel_values=pixels).image_embeds
        unit = F.normalize(embedding if embedding.dtype.itemsize >= 4 else embedding.float(), dim=-1)
        scores: Tensor = self.head(unit.to(embedding))[:, 0]
        return scores


def load(name: str, files: Files) -> Scorer:
    """`files.path`: a local copy of the head, or a folder with it and with the CLIP's
    `config.json` and `model.safetensors`.
    """
    path = files.path
    head = files.fetch(HEAD, HEAD_FILE, HEAD_REVISION, local=path)
    files.sha256(head, expected=None if path else HEAD_SHA256)
    folder = path if path and Path(path).is_dir() else None
    config, file = (
        files.fetch(REPOSITORY, part, REVISION, local=folder) for part in ("config.json", "model.safetensors")
    )
    scorer = Aesthetic(
        name, transformers_clip(config, file, files, vision_only=True), weights_sha256=files.sha256(file, head)
    )
    head_weights = {key.removeprefix("layers."): value for key, value in files.read(head).items()}
    files.fill(scorer.head, head_weights, head)
    return scorer

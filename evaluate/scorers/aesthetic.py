"""Aesthetic predictors: small heads of linear layers on an image's embedding of unit length. The prompt is not read.

`aesthetic/v2`: LAION's (Schuhmann 2022, improved-aesthetic-predictor), on CLIP ViT-L/14. Hub:
`openai/clip-vit-large-patch14`, files `config.json` and `model.safetensors`, and the head
`camenduru/improved-aesthetic-predictor`, file `sac+logos+ava1-l14-linearMSE.pth`. Trained on ratings of
1 to 10; generated images score between 4 and 7. Version 1, another head and another scale, is another protocol.

`aesthetic/v2.5`: discus0434's Aesthetic Predictor V2.5 (2024), on SigLIP SO400M at 384 pixels, to which every image is
squashed. Hub: `google/siglip-so400m-patch14-384`, files `config.json` and `model.safetensors`; the head lies in the
author's own repository, at a commit. About 1 to 10; the author calls 5.5 and more great. He computes in bfloat16, the
head's own precision.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evaluate.precision import at_least_fp32
from evaluate.preprocess import CLIP_224, Preprocess, Resize
from evaluate.scorers import Scorer
from evaluate.scorers._clip import regressor, siglip_vision, transformers_clip
from evaluate.weights import Files

REPOSITORY, REVISION = "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"
# No commit of the head's repository is on record anywhere; the author's file is, by its
# hash, so that is what is pinned.
HEAD, HEAD_REVISION = "camenduru/improved-aesthetic-predictor", "main"
HEAD_FILE = "sac+logos+ava1-l14-linearMSE.pth"
HEAD_SHA256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"

SIGLIP, SIGLIP_REVISION = "google/siglip-so400m-patch14-384", "9fdffc58afc957d1a03a25b10dba0329ab15c2a3"
SIGLIP_HEAD_URL = (
    "https://github.com/discus0434/aesthetic-predictor-v2-5/raw/3125a9e1f275092432ffc336f2908eda812c373c/models/"
    "aesthetic_predictor_v2_5.pth"
)
SIGLIP_HEAD_SHA256 = "a6caf256b3dc434273c98dcb12f6bf17c5d4fc647d8df11f038386923dd06220"
#: transformers' SiglipImageProcessor with Pillow.
SIGLIP_384 = Preprocess(size=384, resize=(Resize(size=384, fit="squash"),), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

VARIANTS = {
    "aesthetic/v2": "LAION Aesthetic v2 (sac+logos+ava1, linear), about 1 to 10; the prompt is not read",
    "aesthetic/v2.5": "Aesthetic Predictor V2.5 (SigLIP), about 1 to 10; the prompt is not read",
}
VERIFIED_BY = {"aesthetic/v2": "formula", "aesthetic/v2.5": "aesthetic-predictor-v2-5 2024.12.18.1"}


class Aesthetic(Scorer):
    """The head's value of the unit-length image embedding. tower: pixels to embeddings."""

    def __init__(self, protocol: str, prepare: Preprocess, tower: nn.Module, head: nn.Module, sha256: str) -> None:
        super().__init__(protocol, prepare, weights_sha256=sha256)
        self.tower, self.head = tower, head

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Nothing, `[B, 0]`."""
        return {"none": torch.empty(len(prompts), 0)}

    def embed(self, pixels: Tensor) -> Tensor:
        """The tower's one embedding of each image, `[B, D]`."""
        out: Any = self.tower(pixel_values=pixels)
        embedding: Tensor = out.image_embeds if "image_embeds" in out else out.pooler_output
        return embedding

    def forward(self, pixels: Tensor, text: Mapping[str, Tensor]) -> Tensor:
        """The rating, `[B]`."""
        embedding = self.embed(pixels)
        unit = F.normalize(at_least_fp32(embedding), dim=-1)
        scores: Tensor = self.head(unit.to(embedding))[:, 0]
        return scores


def siglip_regressor(width: int) -> nn.Sequential:
    """The head of v2.5, `width` to 1, with nothing between its layers but dropout."""
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Dropout(0.5),
        nn.Linear(1024, 128),
        nn.Dropout(0.5),
        nn.Linear(128, 64),
        nn.Dropout(0.5),
        nn.Linear(64, 16),
        nn.Dropout(0.2),
        nn.Linear(16, 1),
    )


def load(name: str, files: Files) -> Scorer:
    """`files.path`: a local copy of the head, or a folder with it and with the tower's `config.json` and
    `model.safetensors`.
    """
    path = files.path
    new = name == "aesthetic/v2.5"
    if new:
        head = files.download(
            SIGLIP_HEAD_URL, SIGLIP_HEAD_SHA256, what="the head of Aesthetic v2.5, 2.6 MB", local=path
        )
    else:
        head = files.fetch(HEAD, HEAD_FILE, HEAD_REVISION, local=path)
        files.sha256(head, expected=None if path else HEAD_SHA256)
    where = (SIGLIP, SIGLIP_REVISION) if new else (REPOSITORY, REVISION)
    folder = path if path and Path(path).is_dir() else None
    config, file = (
        files.fetch(where[0], part, where[1], local=folder) for part in ("config.json", "model.safetensors")
    )
    sha256 = files.sha256(file, head)
    if new:
        tower = siglip_vision(config, file, files)
        scorer = Aesthetic(name, SIGLIP_384, tower, siglip_regressor(tower.config.hidden_size), sha256)
    else:
        tower = transformers_clip(config, file, files, vision_only=True)
        scorer = Aesthetic(name, CLIP_224, tower, regressor(tower.config.projection_dim), sha256)
    prefix = "scoring_head." if new else "layers."
    files.fill(scorer.head, {key.removeprefix(prefix): value for key, value in files.read(head).items()}, head)
    return scorer

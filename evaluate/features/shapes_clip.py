"""The features of the scorer `shapes/clip`, for images of 32 x 32: its image tower's output before the projection."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluate import embedded, scorers
from evaluate import weights as weight_files
from evaluate.features import Extractor, Images, shared

CHUNK = 256


@shared
def extractor(device: Any, path: str | None) -> Extractor:
    """`[B, 64]` of images `[B, 3, 32, 32]`. path: a folder with a CLIP, in place of the embedded one."""
    clip: Any = scorers.load("shapes/clip", device=device, weights=path)

    def features(images: Images) -> Tensor:
        batch = images if isinstance(images, Tensor) else torch.stack(list(images))
        if batch.dtype == torch.uint8:
            batch = batch.float() / 255
        return torch.cat([clip.features(chunk.to(device)) for chunk in batch.split(CHUNK)])

    folder = Path(path) if path else embedded.folder("shapes/clip")
    return Extractor(
        features,
        weights_sha256=weight_files.sha256(folder / "model.safetensors"),
        made_by={"network": "shapes/clip"},
    )

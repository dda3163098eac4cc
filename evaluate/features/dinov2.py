"""The class token of DINOv2 ViT-L/14 after its last norm (Oquab et al. 2023), as FD-DINOv2 takes it (Stein et al.
2023).

Hub: `facebook/dinov2-large`, files `config.json` and `model.safetensors`. An image is resized to 224 x 224, whatever
its shape, by Pillow's bicubic in 8 bits, and normalised by ImageNet's mean and deviation: dgm-eval's transform.

The network was trained at 518 pixels: its table of positions, 37 x 37, has to be resampled to 16 x 16.
facebookresearch's code does so at a scale of 16.1 / 37, which was to keep rounding from losing a row and moves every
position by a little; transformers' does so at 16 / 37. The table here is the former's, and transformers' network takes
it as it is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from evaluate import weights
from evaluate.features import BATCH, Extractor, Images, shared
from evaluate.images import as_bytes
from evaluate.weights import Files
from prompts.io.errors import UserError

REPOSITORY, REVISION = "facebook/dinov2-large", "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c"
FILES = ("config.json", "model.safetensors")
SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TABLE = "embeddings.position_embeddings"


@shared
def extractor(device: Any, path: str | None) -> Extractor:
    """`[B, 1024]`. path: a folder with both files, in place of the hub's."""
    files = Files(path)
    config, file = (files.fetch(REPOSITORY, name, REVISION, local=path) for name in FILES)
    network = load_network(config, files.read(file), file).to(device).eval().requires_grad_(False)

    def features(images: Images) -> Tensor:
        pixels = (
            torch.stack([prepare(image) for image in images[i : i + BATCH]]) for i in range(0, len(images), BATCH)
        )
        return torch.cat([network(pixel_values=batch.to(device)).pooler_output for batch in pixels])

    return Extractor(features, weights_sha256=files.sha256(file), made_by={"network": REPOSITORY, "size": SIZE})


def prepare(image: Tensor) -> Tensor:
    """One image `[3, H, W]` -> float32 `[3, 224, 224]`."""
    whole = Image.fromarray(as_bytes(image).permute(1, 2, 0).cpu().numpy())
    pixels = torch.from_numpy(np.array(whole.resize((SIZE, SIZE), Image.Resampling.BICUBIC))).permute(2, 0, 1).float()
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    return (pixels / 255 - mean) / std


def load_network(config: Path, tensors: Mapping[str, Tensor], source: Path) -> Any:
    """transformers' Dinov2Model at 224 pixels. Raises UserError for the weights of another."""
    from transformers import Dinov2Config, Dinov2Model

    try:
        described = Dinov2Config.from_dict(json.loads(config.read_text(encoding="utf-8")) | {"image_size": SIZE})
        tensors = {**tensors, TABLE: positions(tensors[TABLE], SIZE // described.patch_size)}
        # Which names an attention's weights go by differs between versions of transformers, which knows them all.
        model, info = Dinov2Model.from_pretrained(
            None, config=described, state_dict=tensors, output_loading_info=True, dtype=torch.float32
        )
    except weights.DAMAGE as error:
        raise UserError(f"{source}: {weights.REMEDY} ({weights.reason(error)})") from None
    weights.refuse(info["missing_keys"], info["unexpected_keys"], source)
    return model


def positions(table: Tensor, edge: int) -> Tensor:
    """A table of positions `[1, 1 + N, D]`, the class token's first, -> `[1, 1 + edge^2, D]`: facebookresearch's."""
    grid = table[:, 1:].float()
    before = round(grid.shape[1] ** 0.5)
    if before == edge:
        return table
    grid = grid.reshape(1, before, before, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(edge + 0.1) / before, mode="bicubic")
    return torch.cat([table[:, :1].float(), grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

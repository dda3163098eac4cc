"""The projected image features of OpenAI's CLIP ViT-L/14 at 336 pixels, of unit norm, as CMMD takes them.

Hub: `openai/clip-vit-large-patch14-336`, files `config.json` and `pytorch_model.bin`. An image is cut to its centred
square, rounded down where it cannot be centred, and resized by Pillow's bicubic in 8 bits.
"""

from typing import Any

import torch
from torch.nn import functional as F

from evaluate.features import BATCH, Extractor, Images, shared
from evaluate.images import as_bytes
from evaluate.preprocess import Preprocess, Resize
from evaluate.weights import Files

REPOSITORY, REVISION = "openai/clip-vit-large-patch14-336", "ce19dc912ca5cd21c8a653c79e251e808ccabcd1"
FILES = ("config.json", "pytorch_model.bin")


@shared
def extractor(device: Any, path: str | None) -> Extractor:
    """`[B, 768]`. path: a folder with both files, in place of the hub's."""
    from evaluate.scorers._clip import transformers_clip

    files = Files(path)
    config, weights = (files.fetch(REPOSITORY, name, REVISION, local=path) for name in FILES)
    clip = transformers_clip(config, weights, files, vision_only=True).to(device).eval().requires_grad_(False)
    size = clip.config.image_size
    prepare = Preprocess(size=size, resize=(Resize(size=size, fit="square", odd="floor"),))

    def features(images: Images) -> torch.Tensor:
        pixels = (prepare([as_bytes(image) for image in images[i : i + BATCH]]) for i in range(0, len(images), BATCH))
        return F.normalize(torch.cat([clip(pixel_values=batch.to(device)).image_embeds for batch in pixels]), dim=-1)

    return Extractor(features, weights_sha256=files.sha256(weights), made_by={"network": REPOSITORY, "size": size})

"""The scorers of the embedded world `shapes`, for pictures of 32 x 32 and captions of its grammar."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from evaluate import embedded, weights
from evaluate.scorers import Scorer
from prompts.errors import UserError

VARIANTS = {
    "shapes/oracle": "1 where every fact of the caption is read off the pixels, else 0; learned from nothing",
    "shapes/clip": "100 x cosine of picture and caption under a small CLIP, which also gives fd-shapes its features",
    "shapes/preference": "small preference model: what a stated rule prefers, learned from few pairs",
}


class Oracle(Scorer):
    """Range {0, 1}. Not differentiable, on purpose: nothing may be trained on it."""

    protocol = "shapes/oracle"
    differentiable: ClassVar[bool] = False

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """1 or 0 a picture."""
        from prompts.shapes import verify

        pictures = images.detach().clamp(0, 1).float().cpu().numpy()
        rows = [float(verify(picture, prompt)["correct"]) for picture, prompt in zip(pictures, prompts, strict=True)]
        return torch.tensor(rows, device=images.device)


class DualEncoder(Scorer):
    """100 x cosine of a transformers CLIP's picture and text embeddings, in [-100, 100]."""

    def __init__(self, protocol: str, clip: Any, tokenizer: Any):
        super().__init__()
        self.protocol, self.clip, self.tokenizer = protocol, clip, tokenizer
        self.size = clip.config.vision_config.image_size

    def features(self, images: Tensor) -> Tensor:
        """The picture tower's output before its projection: [B, 3, 32, 32] in [0, 1] -> [B, width]."""
        if images.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"{self.protocol} takes pictures of 3 x {self.size} x {self.size}, got {tuple(images.shape[1:])}")
        parameter = next(self.clip.parameters())
        pooled: Tensor = self.clip.vision_model(pixel_values=(images * 2 - 1).to(parameter)).pooler_output
        return pooled

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """100 x cosine."""
        length = self.clip.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        text = self.clip.text_projection(self.clip.text_model(input_ids=tokens.input_ids.to(images.device)).pooler_output)
        picture = self.clip.visual_projection(self.features(images))
        return 100 * torch.cosine_similarity(picture.float(), text.float(), dim=-1)


def load(name: str, path: str | None) -> Scorer:
    """`path`: a folder with a CLIPModel and its tokenizer, in place of the embedded one."""
    if name == "shapes/oracle":
        if path:
            raise UserError(f"{name} has no weights; leave out {path}")
        return Oracle()
    from transformers import CLIPModel, CLIPTokenizer

    folder = Path(path) if path else embedded.folder(name)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no config.json there; give {name} the folder of a small CLIP made by 'align pretrain' or 'align reward'"
        )
    weights.check_folder(folder)
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    weights.check_folder(folder, clip)
    return DualEncoder(name, clip, CLIPTokenizer.from_pretrained(folder))

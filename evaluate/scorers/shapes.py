"""The scorers of the embedded world `shapes`, for images of 32 x 32 and captions of its grammar."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from evaluate import embedded, weights
from evaluate.preprocess import Preprocess
from evaluate.scorers import Scorer
from evaluate.scorers._clip import TransformersClip
from evaluate.weights import Files
from prompts.io.errors import UserError

VARIANTS = {
    "shapes/oracle": "1 where every fact of the caption is read off the pixels, else 0; learned from nothing",
    "shapes/facts": "how many of the caption's six facts are read off the pixels; learned from nothing",
    "shapes/rule": (
        "the rule that labels preference pairs: facts plus half the colours' vividness; learned from nothing"
    ),
    "shapes/clip": "100 x cosine of image and caption under a small CLIP, which also gives fd-shapes its features",
    "shapes/preference": "small preference model: what shapes/rule prefers, learned from pairs",
    "shapes/preference-weak": "the same learned from few pairs, so that it can be over-optimised",
}
READ = ("shapes/oracle", "shapes/facts", "shapes/rule")
VERIFIED_BY = {name: "renderer" if name in READ else "formula" for name in VARIANTS}

LONGEST = 160  # bytes of a caption


class Reading(Scorer):
    """What a function `(image [3, 32, 32] in [0, 1], caption) -> float` says.

    Not differentiable, on purpose: nothing may be trained on it.
    """

    differentiable: ClassVar[bool] = False

    def __init__(self, protocol: str, read: Callable[[Any, str], float]) -> None:
        from prompts.shapes import RESOLUTION

        super().__init__(protocol, Preprocess(size=RESOLUTION, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
        self.read = read

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`caption`: the captions themselves, as UTF-8 padded with zeros to `[B, LONGEST]`."""
        rows = [prompt.encode() for prompt in prompts]
        if longest := max((row for row in rows if len(row) > LONGEST), key=len, default=None):
            raise ValueError(
                f"{self.protocol}: a prompt of {len(longest)} bytes is no caption of the world; leave it out"
            )
        return {"caption": torch.tensor([list(row.ljust(LONGEST, b"\0")) for row in rows], dtype=torch.uint8)}

    def forward(self, pixels: Tensor, text: Mapping[str, Tensor]) -> Tensor:
        """What is read of each image, `[B]`."""
        images = pixels.detach().clamp(0, 1).float().cpu().numpy()
        captions = [bytes(row.tolist()).rstrip(b"\0").decode() for row in text["caption"]]
        rows = [float(self.read(image, caption)) for image, caption in zip(images, captions, strict=True)]
        return torch.tensor(rows, device=pixels.device)


class DualEncoder(TransformersClip):
    """100 x cosine of a transformers CLIP's image and text embeddings, in [-100, 100]."""

    prepare: Preprocess

    def __init__(self, protocol: str, clip: Any, tokenizer: Any, *, weights_sha256: str) -> None:
        size, half = clip.config.vision_config.image_size, (0.5, 0.5, 0.5)
        prepare = Preprocess(size=size, mean=half, std=half)
        super().__init__(protocol, prepare, clip, tokenizer=tokenizer, scale=100.0, weights_sha256=weights_sha256)

    def features(self, images: Tensor) -> Tensor:
        """The image tower's output before its projection: `[B, 3, 32, 32]`, as `score` takes them -> `[B, width]`."""
        pixels = self.prepare(images).to(self.clip.logit_scale)
        pooled: Tensor = self.clip.vision_model(pixel_values=pixels).pooler_output
        return pooled


def load(name: str, files: Files) -> Scorer:
    """`files.path`: a folder with a CLIPModel and its tokenizer, in place of the embedded one."""
    if name in READ:
        if files.path:
            raise UserError(f"{name} has no weights; leave out {files.path}")
        from prompts.shapes.oracle import verify
        from prompts.shapes.taste import facts, rule

        readings = (lambda image, caption: verify(image, caption)["correct"], facts, rule)
        return Reading(name, dict(zip(READ, readings, strict=True))[name])
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = Path(files.path) if files.path else embedded.folder(name)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no config.json there; give {name} the folder of a small CLIP made by 'align pretrain' or 'align"
            " reward'"
        )
    weights.check_folder(folder)
    clip, parts = CLIPModel(CLIPConfig.from_pretrained(folder)), sorted(folder.glob("*.safetensors"))
    files.fill(clip, files.read(*parts), folder)
    return DualEncoder(name, clip, CLIPTokenizer.from_pretrained(folder), weights_sha256=files.sha256(*parts))

"""What scorers built on a CLIP have in common: two towers, a cosine, and a small head."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from evaluate.precision import at_least_fp32
from evaluate.preprocess import Preprocess
from evaluate.scorers import Scorer
from evaluate.scorers._files import from_config
from evaluate.weights import Files
from prompts.io.errors import UserError, first_line


class Cosine(Scorer):
    """`scale` x the cosine of an image's and a prompt's embedding; scale None is the
    network's own, `exp(logit_scale)`.
    """

    def __init__(
        self, protocol: str, prepare: Preprocess, clip: Any, *, scale: float | None, weights_sha256: str
    ) -> None:
        super().__init__(protocol, prepare, weights_sha256=weights_sha256)
        self.clip, self.scale = clip, scale

    def embed(self, pixels: Tensor) -> Tensor:
        """Image embeddings `[B, D]` of prepared pixels."""
        raise NotImplementedError

    def forward(self, pixels: Tensor, text: Mapping[str, Tensor]) -> Tensor:
        """The scaled cosine, `[B]`, taken in float32 or better."""
        image, words = map(at_least_fp32, (self.embed(pixels), text["features"]))
        scale = self.clip.logit_scale.exp() if self.scale is None else self.scale
        return scale * F.cosine_similarity(image, words, dim=-1)


class OpenClip(Cosine):
    """On open_clip's CLIP and its tokenizer of 77 tokens. prefix: put before every prompt."""

    def __init__(self, *args: Any, prefix: str = "", **options: Any) -> None:
        super().__init__(*args, **options)
        self.prefix = prefix

    def embed(self, pixels: Tensor) -> Tensor:
        """Image embeddings `[B, D]`."""
        features: Tensor = self.clip.encode_image(pixels)
        return features

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`features`: text embeddings `[B, D]`."""
        from open_clip import tokenize

        tokens = tokenize([self.prefix + prompt for prompt in prompts])
        return {"features": self.clip.encode_text(tokens.to(self.clip.logit_scale.device))}


class TransformersClip(Cosine):
    """On transformers' CLIPModel and its tokenizer."""

    def __init__(self, *args: Any, tokenizer: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.tokenizer = tokenizer

    def embed(self, pixels: Tensor) -> Tensor:
        """Image embeddings `[B, D]`."""
        features: Tensor = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output)
        return features

    def length(self, prompt: str) -> int:
        """The next multiple of 16, at most what the network takes."""
        longest: int = self.clip.config.text_config.max_position_embeddings
        n = len(self.tokenizer(prompt, truncation=True, max_length=longest).input_ids)
        return min(longest, 16 * math.ceil(n / 16))

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`features`: text embeddings `[B, D]`. Attention is causal, so padding after the end changes nothing."""
        length = max(map(self.length, prompts))
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        pooled = self.clip.text_model(input_ids=tokens.input_ids.to(self.clip.logit_scale.device)).pooler_output
        return {"features": self.clip.text_projection(pooled)}


def open_clip_model(name: str, path: Path, files: Files) -> nn.Module:
    """open_clip's architecture `name` with the weights at `path`, every key matched."""
    from open_clip import CLIP, get_model_config

    model: nn.Module = CLIP(**get_model_config(name))
    files.fill(model, files.read(path), path)
    return model


def empty_clip(config: Path, *, vision_only: bool = False) -> Any:
    """transformers' CLIPModel, or its image tower with the projection, as `config` describes it."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

    def make(content: Any) -> Any:
        described = CLIPConfig.from_dict(content)
        return CLIPVisionModelWithProjection(_vision(described)) if vision_only else CLIPModel(described)

    return from_config(config, make, what="CLIP")


def transformers_clip(config: Path, path: Path, files: Files, *, vision_only: bool = False) -> Any:
    """`empty_clip(config)`, read from `path`."""
    model = empty_clip(config, vision_only=vision_only)
    # Old versions stored the numbering of positions as if it were a weight.
    tensors = {key: value for key, value in files.read(path).items() if not key.endswith("embeddings.position_ids")}
    if vision_only:
        tensors = {
            key: value for key, value in tensors.items() if key.startswith(("vision_model.", "visual_projection."))
        }
    files.fill(model, tensors, path)
    return model


def siglip_vision(config: Path, path: Path, files: Files) -> Any:
    """The image tower of transformers' SiglipModel, described by `config` and read from `path`, where a text tower may
    be too.
    """
    from transformers import SiglipVisionConfig, SiglipVisionModel

    model = from_config(
        config, lambda content: SiglipVisionModel(SiglipVisionConfig(**content["vision_config"])), what="SigLIP"
    )
    image = {
        key.removeprefix("vision_model."): value
        for key, value in files.read(path).items()
        if key.startswith("vision_model.") and not key.endswith("embeddings.position_ids")
    }
    # Older transformers have one more module around the tower.
    files.fill(model.base_model, image, path)
    return model


def _vision(config: Any) -> Any:
    config.vision_config.projection_dim = config.projection_dim
    return config.vision_config


def clip_tokenizer(vocabulary: Path, merges: Path) -> Any:
    """transformers' CLIPTokenizer of a `vocab.json` and a `merges.txt`."""
    from transformers import CLIPTokenizer

    try:
        ids = json.loads(vocabulary.read_text(encoding="utf-8"))
        pairs = [tuple(line.split()) for line in merges.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
        return CLIPTokenizer(vocab=ids, merges=pairs)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{vocabulary}: no vocabulary of a CLIP tokenizer ({first_line(error)}); fetch it again"
        ) from None


def regressor(width: int) -> nn.Sequential:
    """The head of both Aesthetic v2 and ImageReward: five linear layers with nothing between
    them but dropout, `width` to 1.
    """
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )

"""MPS, Multi-dimensional Preference Score (Zhang et al. 2024, arXiv:2405.14705), of overall preference: a CLIP ViT-H/14
whose image tokens attend to those of the prompt's that have to do with a list of words, the condition.

Hub: `RE-N-Y/mpsv1`, file `model.safetensors`, the authors' network (github.com/Kwai-Kolors/MPS publishes a pickle of
the whole module, which is not read) as github.com/RE-N-Y/imscore names its tensors; `config.json`, `vocab.json` and
`merges.txt` of `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`. No commit of `RE-N-Y/mpsv1` is on record, so it is taken as it
is. `exp(logit_scale)`, about 100, times a cosine.

A token of the prompt is attended to where its largest product with a token of the condition, divided by the largest of
all tokens, is over a threshold. The authors divide by the largest of the batch, which makes a score depend on what it
was computed with, and call the network with one prompt; here it is the prompt's. Their scripts
(`eval_overall_mps_on_hpdv2.py`) have a threshold of 0.3: `mps`. The module's own `forward`, which their README calls,
and those who ported it have 0.01: `mps/forward`. Padding counts as tokens do, and is `<|endoftext|>`, as CLIP's
tokenizer pads unless it is told otherwise. The authors compute in fp16, in which a token near the threshold can fall on
its other side.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evaluate.precision import at_least_fp32
from evaluate.preprocess import PROCESSOR_224
from evaluate.scorers import Scorer
from evaluate.weights import Files

REPOSITORY, REVISION = "RE-N-Y/mpsv1", "main"
FILE = "model.safetensors"
BASE, BASE_REVISION = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c"
#: Of overall preference, the one whose weights are published.
CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance,"
    " texture, quantity, attributes, position, number, location, word, things."
)
THRESHOLDS = {"mps": 0.3, "mps/forward": 0.01}

VARIANTS = {
    "mps": "MPS of overall preference, with the threshold of the authors' scripts (0.3)",
    "mps/forward": "MPS of overall preference, with the threshold of the authors' module and its ports (0.01)",
}
VERIFIED_BY = dict.fromkeys(VARIANTS, "Kwai-Kolors/MPS be9027f")

#: Of the layers behind the CLIP, which read the image tokens once more.
LAYERS, HEADS, HEAD_WIDTH, FACTOR = 4, 16, 64, 4


class SwiGLU(nn.Module):
    """`x silu(gate)` of `[..., x gate]` (Shazeer 2020, arXiv:2002.05202)."""

    def forward(self, both: Tensor) -> Tensor:
        """Half as wide."""
        x, gate = both.chunk(2, -1)
        return x * F.silu(gate)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of many heads to one of keys and values (Shazeer 2019, arXiv:1911.02150), `[B, N, heads x width]`.

    query: `[B, N, heads x width]`; key, value: `[B, M, width]`; mask: `[B, M]`, True where it may look.
    """
    heads = query.unflatten(-1, (-1, key.shape[-1])).transpose(1, 2)
    key, value = (each[:, None].expand(-1, heads.shape[1], -1, -1) for each in (key, value))
    seen = F.scaled_dot_product_attention(heads, key, value, None if mask is None else mask[:, None, None])
    return seen.transpose(1, 2).flatten(2)


def rotate(x: Tensor) -> Tensor:
    """`x` `[..., N, width]` with rotary positions (Su et al. 2021, arXiv:2104.09864) 0 to N - 1, halves as pairs."""
    length, width = x.shape[-2:]
    frequencies = 10000 ** (-torch.arange(0, width, 2, device=x.device) / width)
    angles = torch.outer(torch.arange(length, device=x.device), frequencies).repeat(1, 2)
    first, second = x.chunk(2, -1)
    return x * angles.cos().to(x) + torch.cat([-second, first], -1) * angles.sin().to(x)


class Cross(nn.Module):
    """Image tokens `[B, N, D]`, their attention to the prompt's `[B, M, D]`, and a feed-forward network beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.to_q = nn.Linear(width, HEADS * HEAD_WIDTH, bias=False)
        self.to_kv = nn.Linear(width, 2 * HEAD_WIDTH, bias=False)
        self.to_out = nn.Linear(HEADS * HEAD_WIDTH, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 2 * FACTOR * width, bias=False), SwiGLU(), nn.Linear(FACTOR * width, width, bias=False)
        )

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Mask: `[B, M]`, which tokens of the prompt are seen."""
        x = self.norm(image)
        key, value = self.to_kv(text).chunk(2, -1)
        seen = attend(self.to_q(x), key, value, mask)
        return image + self.to_out(seen) + self.ff(x)


class Parallel(nn.Module):
    """Image tokens `[B, N, D]`, their attention to each other and a feed-forward network, all from one projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.widths = (HEADS * HEAD_WIDTH, HEAD_WIDTH, HEAD_WIDTH, 2 * FACTOR * width)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.widths), bias=False)
        self.attn_out = nn.Linear(HEADS * HEAD_WIDTH, width, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(FACTOR * width, width, bias=False))

    def forward(self, image: Tensor) -> Tensor:
        """The tokens, read once more."""
        query, key, value, inner = self.fused_attn_ff_proj(self.norm(image)).split(self.widths, -1)
        # Every head's positions alike.
        query = rotate(query.unflatten(-1, (HEADS, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)
        return image + self.attn_out(attend(query, rotate(key), value)) + self.ff_out(inner)


class Layer(nn.ModuleList):
    """Both, one after the other; numbered, as the authors' are."""

    def __init__(self, width: int) -> None:
        super().__init__([Cross(width), Parallel(width)])

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """As `Cross`."""
        cross, parallel = self
        tokens: Tensor = parallel(cross(image, text, mask))
        return tokens


class MPS(Scorer):
    """`exp(logit_scale)` times the cosine of the prompt's embedding and of the image's, read for the prompt."""

    condition: Tensor

    def __init__(self, protocol: str, clip: Any, tokenizer: Any, *, weights_sha256: str) -> None:
        super().__init__(protocol, PROCESSOR_224, weights_sha256=weights_sha256)
        self.threshold = THRESHOLDS[protocol]
        width = clip.config.projection_dim
        self.clip, self.tokenizer = clip, tokenizer
        self.cross = nn.ModuleList(Layer(width) for _ in range(LAYERS))
        self.register_buffer("condition", self.tokens([CONDITION]), persistent=False)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """`[B, 77]`, padded."""
        longest = self.clip.config.text_config.max_position_embeddings
        words = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        )
        ids: Tensor = words.input_ids
        return ids

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`ids`, `[B, 77]`: embeddings of all tokens are too large to be kept for every prompt."""
        return {"ids": self.tokens(prompts).to(self.clip.logit_scale.device)}

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of prompts, `[B, D]`, and of all their tokens, `[B, 77, D]`."""
        out = self.clip.text_model(input_ids=ids)
        return self.clip.text_projection(out.pooler_output), self.clip.text_projection(out.last_hidden_state)

    def mask(self, words: Tensor, condition: Tensor) -> Tensor:
        """Which of tokens `[B, 77, D]` have to do with the condition `[77, D]`, both embedded: `[B, 77]`."""
        words, condition = map(at_least_fp32, (words, condition))
        similarity = (words @ condition.T).amax(-1)
        return similarity / similarity.amax(1, keepdim=True) > self.threshold

    def forward(self, pixels: Tensor, text: Mapping[str, Tensor]) -> Tensor:
        """The score, `[B]`, its cosine taken in float32 or better."""
        prompt, words = self.read(torch.cat([text["ids"], self.condition]))
        mask = self.mask(words[:-1], words[-1])
        image = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).last_hidden_state)
        for layer in self.cross:
            image = layer(image, words[:-1], mask)
        a, b = map(at_least_fp32, (prompt[:-1], image[:, 0]))
        return self.clip.logit_scale.exp() * F.cosine_similarity(a, b, dim=-1)


#: In the file, and nothing to fill: numberings, the zeros that the norms add, and what rotary positions are made of.
UNUSED = re.compile(r"embeddings\.position_ids$|\.fn\.norm\.bias$|\.rotary_emb\.inv_freq$")


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict, or imscore's, under this module's names."""
    renamed = {}
    for key, value in tensors.items():
        if not UNUSED.search(key):
            name = re.sub(r"^model\.", "clip.", key.removeprefix("mps."))
            renamed[re.sub(r"^cross_model\.layers\.(\d+)\.(\d)\.fn\.", r"cross.\1.\2.", name)] = value
    return renamed


def load(name: str, files: Files) -> Scorer:
    """`files.path`: a local file of weights, or a folder with `model.safetensors`; `config.json`, `vocab.json` and
    `merges.txt` too are taken from a folder that has a `vocab.json`.
    """
    from evaluate.scorers._clip import clip_tokenizer, empty_clip

    file = files.fetch(REPOSITORY, FILE, REVISION, local=files.path)
    folder = files.path if files.path and (Path(files.path) / "vocab.json").is_file() else None
    config, *words = (
        files.fetch(BASE, part, BASE_REVISION, local=folder) for part in ("config.json", "vocab.json", "merges.txt")
    )
    scorer = MPS(name, empty_clip(config), clip_tokenizer(*words), weights_sha256=files.sha256(file))
    files.fill(scorer, rename(files.read(file)), file)
    return scorer

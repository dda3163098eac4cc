"""ImageReward v1.0 (Xu et al. 2023, arXiv:2304.05977): a BLIP that reads the prompt with the
image before it, and a linear head.

Hub: `THUDM/ImageReward`, file `ImageReward.pt`; words of `bert-base-uncased`, file `vocab.txt`. Unbounded; standardised
to mean 0 and deviation 1 on the authors' validation images, so most images score between -2.5 and 2.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from evaluate.preprocess import CLIP_224
from evaluate.scorers import Scorer
from evaluate.scorers._clip import regressor
from evaluate.weights import Files

REPOSITORY, REVISION = "THUDM/ImageReward", "5736be03b2652728fb87788c9797b0570450ab72"
WORDS, WORDS_REVISION = "bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594"
MEAN, STD = 0.16717362830052426, 1.0333394966054072
LENGTH = 35  # tokens, with [CLS] and [SEP]

VARIANTS = {"imagereward": "ImageReward v1.0, standardised"}
VERIFIED_BY = {"imagereward": "image-reward 1.5"}

#: BLIP-large's image tower and BERT-base with cross-attention to it, as the authors' `med_config.json` has it.
ARCHITECTURE: dict[str, dict[str, Any]] = {
    "vision": {
        "image_size": 224, "patch_size": 16, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "layer_norm_eps": 1e-6,
    },
    "text": {
        "vocab_size": 30524, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512, "layer_norm_eps": 1e-12,
    },
}  # fmt: skip

#: The authors' names in BLIP's image tower -> transformers'. Text keys are the same in both.
NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm(\d)\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"^norm\.", "post_layernorm."),
)
#: In the file, used by nothing: projections of BLIP's contrastive loss, and the numbering of positions.
UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\.|blip\.text_encoder\.embeddings\.position_ids$")


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under this module's names; a name that nobody knows stays, to
    be refused by the strict match.
    """
    renamed = {}
    for key, value in tensors.items():
        if UNUSED.match(key):
            continue
        if key.startswith("blip.visual_encoder."):
            inner = key.removeprefix("blip.visual_encoder.")
            for pattern, replacement in NAMES:
                inner = re.sub(pattern, replacement, inner)
            key = f"vision.{inner}"
        renamed[key.replace("blip.text_encoder.", "language.", 1).replace("mlp.layers.", "head.", 1)] = value
    return renamed


class ImageReward(Scorer):
    """`(head(CLS of the prompt read with the image) - MEAN) / STD`."""

    def __init__(self, protocol: str, tokenizer: Any, *, weights_sha256: str) -> None:
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__(protocol, CLIP_224, weights_sha256=weights_sha256)
        vision, text = BlipVisionConfig(**ARCHITECTURE["vision"]), ARCHITECTURE["text"]
        self.vision = BlipVisionModel(vision)
        # is_decoder is transformers' word for having cross-attention; attention among the words stays bidirectional.
        language = BlipTextConfig(**text, encoder_hidden_size=vision.hidden_size, is_decoder=True)
        self.language = BlipTextModel(language, add_pooling_layer=False)
        self.head = regressor(language.hidden_size)
        self.tokenizer = tokenizer

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`ids` and `mask`, `[B, 35]`: the image comes in at every layer, so nothing of
        the text can be computed before.
        """
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        device = self.head[0].weight.device
        return {"ids": tokens.input_ids.to(device), "mask": tokens.attention_mask.to(device)}

    def forward(self, pixels: Tensor, text: Mapping[str, Tensor]) -> Tensor:
        """The reward, `[B]`."""
        image = self.vision(pixel_values=pixels).last_hidden_state
        read = self.language(input_ids=text["ids"], attention_mask=text["mask"], encoder_hidden_states=image)
        return (self.head(read.last_hidden_state[:, 0])[:, 0] - MEAN) / STD


def make_tokenizer(vocabulary: Path) -> Any:
    """BERT's tokenizer of a `vocab.txt`, with the two tokens BLIP adds."""
    from transformers import BertTokenizer

    words = vocabulary.read_text(encoding="utf-8").splitlines()
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer


def load(name: str, files: Files) -> Scorer:
    """`files.path`: a local `ImageReward.pt`, or a folder with it; the words too are taken from a
    folder that has a `vocab.txt`.
    """
    file = files.fetch(REPOSITORY, "ImageReward.pt", REVISION, local=files.path)
    folder = files.path if files.path and (Path(files.path) / "vocab.txt").is_file() else None
    tokenizer = make_tokenizer(files.fetch(WORDS, "vocab.txt", WORDS_REVISION, local=folder))
    scorer = ImageReward(name, tokenizer, weights_sha256=files.sha256(file))
    files.fill(scorer, rename(files.read(file)), file)
    return scorer

"""Qwen3-VL, of which judges are made, and what it was fine-tuned to.

Figures: of 8B, the published config and `model.safetensors.index.json` as other projects quote them (17,534,247,392
bytes of bf16 in four files); of 2B, 4B and 32B, those that others count on: SGLang's and MLX's tables of Qwen3-VL's
sizes. Words are Qwen's, and stand-ins; the numbers of the special ones are published.
"""

import json
from functools import cache, partial
from typing import Any

from evaluate.layouts import Layout, z_image

#: Words of the language, and behind them the special ones, as Qwen3-VL's tokenizer_config.json numbers them.
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip

LARGE = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
SMALL = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
#: Width, between, layers, heads, whether the words that are read are those that are written, and the image tower.
SIZES: dict[str, tuple[int, int, int, int, bool, dict[str, Any]]] = {
    "2b": (2048, 6144, 28, 16, True, SMALL),
    "4b": (2560, 9728, 36, 32, True, SMALL),
    "8b": (4096, 12288, 36, 32, False, LARGE),
    "32b": (5120, 25600, 64, 64, False, LARGE),
}


@cache
def tokenizer() -> dict[str, Any]:
    """Qwen's words as one file."""
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    words = z_image.tokenizer()
    merges = [tuple(line.split()) for line in words["merges.txt"].splitlines()[1:]]
    vocabulary = {word: number for word, number in words["vocab.json"].items() if number < z_image.WORDS}
    backend = Qwen2Tokenizer(vocab=vocabulary, merges=merges).backend_tokenizer
    backend.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    return json.loads(backend.to_str())


def judge(size: str) -> Layout:
    """Config, words, and an index without weights."""
    width, between, layers, heads, tied, vision = SIZES[size]
    text = {
        "hidden_size": width,
        "intermediate_size": between,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True,
        },
    }  # fmt: skip
    vision = {**vision, "num_heads": 16, "out_hidden_size": width}
    return {
        "config.json": {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied},
        "tokenizer.json": tokenizer(),
        "model.safetensors.index.json": {"weight_map": {}},
    }


LAYOUTS = {
    "Qwen/Qwen3-VL-8B-Instruct": partial(judge, "8b"),
    **{f"CodeGoat24/UnifiedReward-2.0-qwen3vl-{size}": partial(judge, size) for size in SIZES},
}

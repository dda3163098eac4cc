"""Qwen2-VL, as scorers take it: its config and its tokenizer, without a pipeline.

Figures: the published config.json of Qwen/Qwen2-VL-7B-Instruct, which others' ports quote; the network has as many
parameters as the repository's model.safetensors.index.json has bytes for. Its special words are in the published order,
so that those which the config numbers have these numbers.
"""

import json
from functools import cache
from typing import Any

from evaluate.layouts import Layout, _parts, z_image

CONFIG_7B = {
    "model_type": "qwen2_vl", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "max_window_layers": 28, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "sliding_window": 32768, "use_sliding_window": False, "tie_word_embeddings": False, "vocab_size": 152064,
    "bos_token_id": 151643, "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
    "image_token_id": 151655, "video_token_id": 151656,
    "vision_config": {
        "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "hidden_size": 3584, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
}  # fmt: skip
SPECIAL = [
    *z_image.SPECIAL, "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>",
    "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip


@cache
def tokenizer() -> dict[str, Any]:
    """`tokenizer.json`, for which an instruction is about as long as it really is."""
    from transformers import Qwen2Tokenizer

    from evaluate.scorers.hpsv3 import INSTRUCTION

    backend = Qwen2Tokenizer().backend_tokenizer
    words = _parts.byte_pairs(backend, SPECIAL, z_image.WORDS, more=[INSTRUCTION])
    pairs = [tuple(line.split()) for line in words["merges.txt"].splitlines()[1:]]
    made = Qwen2Tokenizer(vocab=words["vocab.json"], merges=pairs, pad_token=SPECIAL[0], eos_token=SPECIAL[2])
    made.add_special_tokens({"additional_special_tokens": SPECIAL})
    content: dict[str, Any] = json.loads(made.backend_tokenizer.to_str())
    return content


def instruct_7b() -> Layout:
    """Qwen2-VL-7B-Instruct, of which HPSv3 is a fine-tuning."""
    return {"config.json": CONFIG_7B, "tokenizer.json": tokenizer()}


LAYOUTS = {"Qwen/Qwen2-VL-7B-Instruct": instruct_7b}

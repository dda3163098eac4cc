"""Z-Image.

Figures: of the network github.com/Tongyi-MAI/Z-Image, src/config/model.py; of all else
github.com/zhutao100/Z-Image.swift, docs/z-image.md and docs/z-image-turbo.md, which quote the published configs.
Written out as diffusers does, model_index.json and the configs of transformer, VAE, text encoder and scheduler have the
very md5 that Z-Image's own src/config/manifests/z-image-turbo.txt gives for Z-Image-Turbo's files.
"""

from functools import cache, partial
from typing import Any

from evaluate.layouts import Layout, _parts, flux, pipeline

TRANSFORMER = {
    "dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30, "in_channels": 16,
    "cap_feat_dim": 2560, "all_patch_size": [2], "all_f_patch_size": [1], "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512], "rope_theta": 256.0, "t_scale": 1000.0, "norm_eps": 1e-5, "qk_norm": True,
}  # fmt: skip
QWEN3_4B = {
    "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960, "vocab_size": 151936,
    "tie_word_embeddings": True,
}  # fmt: skip
#: Words before the special ones: text_encoder/config.json has the first of these as its bos_token_id, the last as its
#: eos_token_id. The longest text: docs/z-image.md.
WORDS, SPECIAL, LENGTH = 151643, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], 131072
#: ChatML, as docs/z-image.md describes the published template.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def tokenizer() -> dict[str, Any]:
    """Qwen's."""
    from transformers import Qwen2Tokenizer

    backend = Qwen2Tokenizer().backend_tokenizer
    config = {"model_max_length": LENGTH, "pad_token": SPECIAL[0], "eos_token": SPECIAL[2], "chat_template": TEMPLATE}
    added = {
        str(WORDS + number): {"content": word, "special": True, "normalized": False}
        for number, word in enumerate(SPECIAL)
    }
    return _parts.byte_pairs(backend, SPECIAL, WORDS) | {
        "tokenizer_config.json": config | {"added_tokens_decoder": added}
    }


def whole(shift: float) -> Layout:
    """The pipeline with a scheduler of this shift."""
    parts = {
        "transformer": ("ZImageTransformer2DModel", TRANSFORMER),
        "vae": ("AutoencoderKL", flux.VAE),
        "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": shift, "use_dynamic_shifting": False}),
        "text_encoder": ("Qwen3Model", QWEN3_4B),
        "tokenizer": ("Qwen2Tokenizer", tokenizer()),
    }
    return pipeline("ZImagePipeline", parts)


LAYOUTS = {"Tongyi-MAI/Z-Image-Turbo": partial(whole, 3.0), "Tongyi-MAI/Z-Image": partial(whole, 6.0)}

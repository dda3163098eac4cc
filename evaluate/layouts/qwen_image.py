"""Qwen-Image.

Figures: what the classes of github.com/huggingface/diffusers take for granted, which is Qwen-Image; its scheduler's
config as github.com/ModelTC/Qwen-Image-Lightning quotes and changes it; of the text encoder, the published config of
Qwen2.5-VL 7B Instruct, which other projects quote, of which only the language is read here.
"""

from evaluate.layouts import Layout, pipeline, z_image

SCHEDULER = {
    "shift": 1.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256,
    "max_image_seq_len": 8192, "shift_terminal": 0.02,
}  # fmt: skip
LANGUAGE = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "max_position_embeddings": 128000, "vocab_size": 152064, "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}  # fmt: skip
VISION = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
    "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip


def whole() -> Layout:
    """The pipeline."""
    parts: dict[str, tuple[str, Layout]] = {
        "transformer": ("QwenImageTransformer2DModel", {}),
        "vae": ("AutoencoderKLQwenImage", {}),
        "scheduler": ("FlowMatchEulerDiscreteScheduler", SCHEDULER),
        "text_encoder": (
            "Qwen2_5_VLForConditionalGeneration",
            {"text_config": LANGUAGE, "vision_config": VISION, "tie_word_embeddings": False},
        ),
        "tokenizer": ("Qwen2Tokenizer", z_image.tokenizer()),
    }
    return pipeline("QwenImagePipeline", parts)


LAYOUTS = {"Qwen/Qwen-Image": whole}

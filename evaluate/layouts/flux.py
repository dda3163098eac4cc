"""FLUX.1.

Figures: the configs of black-forest-labs/FLUX.1-dev, as github.com/lllyasviel/stable-diffusion-webui-forge has copies
of them below backend/huggingface.
"""

from evaluate.layouts import Layout, _parts, pipeline

TRANSFORMER = {
    "in_channels": 64, "patch_size": 1, "num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24,
    "attention_head_dim": 128, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
}  # fmt: skip
SCHEDULER = {
    "shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}  # fmt: skip
#: Z-Image has it too.
VAE = _parts.autoencoder(
    16, 0.3611, 1024, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False, force_upcast=True
)


def dev() -> Layout:
    """FLUX.1-dev, which is told a guidance scale."""
    parts = {
        "transformer": ("FluxTransformer2DModel", TRANSFORMER),
        "vae": ("AutoencoderKL", VAE),
        "scheduler": ("FlowMatchEulerDiscreteScheduler", SCHEDULER),
        "text_encoder": ("CLIPTextModel", _parts.CLIP_L),
        "text_encoder_2": ("T5EncoderModel", _parts.T5_XXL),
        "tokenizer": ("CLIPTokenizer", _parts.clip_tokenizer()),
        "tokenizer_2": ("T5TokenizerFast", _parts.t5_tokenizer()),
    }
    return pipeline("FluxPipeline", parts)


LAYOUTS = {"black-forest-labs/FLUX.1-dev": dev}

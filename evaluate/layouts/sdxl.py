"""Stable Diffusion XL.

Figures: the configs of stabilityai/stable-diffusion-xl-base-1.0, as github.com/lllyasviel/stable-diffusion-webui-forge
has copies of them below backend/huggingface.
"""

from evaluate.layouts import Layout, _parts, pipeline

#: unet/config.json, where it is not what diffusers takes for granted.
UNET = {
    "sample_size": 128, "block_out_channels": [320, 640, 1280], "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon",
    "steps_offset": 1, "timestep_spacing": "leading",
}  # fmt: skip


def base() -> Layout:
    """Base 1.0."""
    parts = {
        "unet": ("UNet2DConditionModel", UNET),
        "vae": ("AutoencoderKL", _parts.autoencoder(4, 0.13025, 1024, force_upcast=True)),
        "scheduler": ("EulerDiscreteScheduler", SCHEDULER),
        "text_encoder": ("CLIPTextModel", _parts.CLIP_L),
        "text_encoder_2": ("CLIPTextModelWithProjection", _parts.CLIP_BIG_G),
        "tokenizer": ("CLIPTokenizer", _parts.clip_tokenizer()),
        "tokenizer_2": ("CLIPTokenizer", _parts.clip_tokenizer("!")),
    }
    return pipeline("StableDiffusionXLPipeline", parts, force_zeros_for_empty_prompt=True)


#: DI*'s authors published their one-step generators as this pipeline with another network of the same size.
LAYOUTS = {"stabilityai/stable-diffusion-xl-base-1.0": base, "XDG-XHS/distar_long_1step": base}

"""Stable Diffusion 3.5.

Figures: of large, the configs of stabilityai/stable-diffusion-3.5-large, as the branch sd35 of
github.com/lllyasviel/stable-diffusion-webui-forge has copies of them (commit 1363999f, backend/huggingface). Of medium,
what scripts/convert_sd3_to_diffusers.py of github.com/huggingface/diffusers says of the 2B network (blocks that attend
twice, the table of 384 x 384 places, as many heads as layers) with its 24 layers; all else is large's.
"""

from functools import partial
from typing import Any

from evaluate.layouts import Layout, _parts, pipeline


def transformer(layers: int, places: int, twice: int) -> dict[str, Any]:
    """The network: as many heads of 64 channels as layers. places: along each side of the largest image, in two by two
    latents. twice: blocks, the first ones, in which the image attends to itself once more.
    """
    return {
        "sample_size": 128,
        "num_layers": layers,
        "num_attention_heads": layers,
        "attention_head_dim": 64,
        "caption_projection_dim": 64 * layers,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": places,
        "dual_attention_layers": list(range(twice)),
        "qk_norm": "rms_norm",
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
    }


def whole(layers: int, places: int, twice: int) -> Layout:
    """The pipeline around a network of this size."""
    vae = _parts.autoencoder(
        16, 1.5305, 1024, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False, force_upcast=True
    )
    parts = {
        "transformer": ("SD3Transformer2DModel", transformer(layers, places, twice)),
        "vae": ("AutoencoderKL", vae),
        "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        "text_encoder": ("CLIPTextModelWithProjection", _parts.CLIP_L),
        "text_encoder_2": ("CLIPTextModelWithProjection", _parts.CLIP_BIG_G),
        "text_encoder_3": ("T5EncoderModel", _parts.T5_XXL),
        "tokenizer": ("CLIPTokenizer", _parts.clip_tokenizer()),
        "tokenizer_2": ("CLIPTokenizer", _parts.clip_tokenizer("!")),
        "tokenizer_3": ("T5TokenizerFast", _parts.t5_tokenizer()),
    }
    return pipeline("StableDiffusion3Pipeline", parts)


LAYOUTS = {
    "stabilityai/stable-diffusion-3.5-large": partial(whole, 38, 192, 0),
    "stabilityai/stable-diffusion-3.5-medium": partial(whole, 24, 384, 13),
}

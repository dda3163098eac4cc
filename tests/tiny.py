"""A tiny random pipeline in the layout of the real ones, and a run of a few steps on it."""

from pathlib import Path
from typing import Any

import torch


def tiny_components(seed: int, *, prediction: str = "v_prediction", channels: int = 8) -> dict[str, Any]:
    """A StableDiffusionPipeline's parts, of a few thousand random parameters."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from align.world.pretrain import make_tokenizer

    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
    }
    return {
        "vae": AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
            block_out_channels=[8, 8],
            latent_channels=4, norm_num_groups=4, sample_size=32, mid_block_add_attention=False, scaling_factor=0.5,
        ),
        "text_encoder": CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **ends, **text)).eval(),
        "tokenizer": tokenizer,
        "unet": UNet2DConditionModel(
            sample_size=16, in_channels=4, out_channels=4, block_out_channels=[channels], layers_per_block=1,
            attention_head_dim=2,
            down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"], norm_num_groups=4, cross_attention_dim=16,
        ).eval(),
        "scheduler": EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction,
            timestep_spacing="trailing",
            steps_offset=1,
        ),
        "safety_checker": None,
        "feature_extractor": None,
    }  # fmt: skip


def save_tiny(folder: Path, seed: int = 0, **options: Any) -> Path:
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline(**tiny_components(seed, **options), requires_safety_checker=False).save_pretrained(folder)
    return folder


#: A run of a few steps on a tiny pipeline; tests lay their changes over it.
SMALL_RUN: dict[str, Any] = {
    "stage": "train", "method": "di", "prompts": "shapes:train", "steps": 4, "batch_size": 8,
    "noise_levels": {"name": "lognormal", "parameters": {"mean": 0.0, "std": 1.2}},
    "divergence": {"weight": "inverse_norm"},
    "student": {"learning_rate": 1e-3}, "assistant": {"learning_rate": 1e-3, "warmup": 1}, "ema": 0.5,
    "held_out": {"scorers": {"shapes/oracle": 0.5}, "prompts": "shapes:test", "images": 4, "every": 5, "guard": "off"},
    "save_every": 100, "sample_every": 100,
}  # fmt: skip

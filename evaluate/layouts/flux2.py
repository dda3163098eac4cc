"""FLUX.2.

Figures: of the network, scripts/convert_flux2_to_diffusers.py of github.com/huggingface/diffusers; the autoencoder is
as its class takes for granted, and its text encoder Z-Image's, Qwen3 4B, whose files these are. The scheduler's mu goes
from 0.5 to 1.15, as FLUX.1's.
"""

from functools import partial

from evaluate.layouts import Layout, flux, pipeline, z_image

TRANSFORMER = {
    "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "attention_head_dim": 128, "in_channels": 128,
    "joint_attention_dim": 7680, "guidance_embeds": False,
}  # fmt: skip


def klein_4b(distilled: bool) -> Layout:
    """The pipeline of klein 4B. distilled: to four steps without guidance."""
    parts: dict[str, tuple[str, Layout]] = {
        "transformer": ("Flux2Transformer2DModel", TRANSFORMER),
        "vae": ("AutoencoderKLFlux2", {}),
        "scheduler": ("FlowMatchEulerDiscreteScheduler", flux.SCHEDULER),
        "text_encoder": ("Qwen3ForCausalLM", z_image.QWEN3_4B),
        "tokenizer": ("Qwen2TokenizerFast", z_image.tokenizer()),
    }
    return pipeline("Flux2KleinPipeline", parts, is_distilled=distilled)


LAYOUTS = {
    "black-forest-labs/FLUX.2-klein-4B": partial(klein_4b, True),
    "black-forest-labs/FLUX.2-klein-base-4B": partial(klein_4b, False),
}

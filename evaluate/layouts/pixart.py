"""PixArt-alpha.

Figures: scripts/convert_pixart_alpha_to_diffusers.py of github.com/huggingface/diffusers, which made the published
pipeline: its network, and T5 v1.1 XXL, the autoencoder of Stable Diffusion 1 and a scheduler left as diffusers has it.
"""

from evaluate.layouts import Layout, _parts, pipeline

TRANSFORMER = {
    "sample_size": 64, "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4,
    "out_channels": 8, "patch_size": 2, "attention_bias": True, "cross_attention_dim": 1152, "caption_channels": 4096,
    "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False, "norm_eps": 1e-6,
}  # fmt: skip
#: What diffusers 0.42 makes of no options.
SCHEDULER = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon"}


def xl_2_512() -> Layout:
    """XL/2 for 512 x 512."""
    parts = {
        "transformer": ("PixArtTransformer2DModel", TRANSFORMER),
        "vae": ("AutoencoderKL", _parts.autoencoder(4, 0.18215, 512)),
        "scheduler": ("DPMSolverMultistepScheduler", SCHEDULER),
        "text_encoder": ("T5EncoderModel", _parts.T5_XXL),
        "tokenizer": ("T5Tokenizer", _parts.t5_tokenizer()),
    }
    return pipeline("PixArtAlphaPipeline", parts)


LAYOUTS = {"PixArt-alpha/PixArt-XL-2-512x512": xl_2_512}

"""Tiny autoencoders for rewards.

Figures: github.com/madebyollin/taesd, taesd.py: the widths and blocks that are diffusers' own for an AutoencoderTiny,
and 16 channels of latents for Stable Diffusion 3's and FLUX.1's.
"""

from functools import partial

from evaluate.layouts import Layout


def tiny(channels: int) -> Layout:
    """Of latents of so many channels."""
    widths = [64] * 4
    config = {
        "_class_name": "AutoencoderTiny",
        "latent_channels": channels,
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "num_encoder_blocks": [1, 3, 3, 3],
        "num_decoder_blocks": [3, 3, 3, 1],
    }
    return {"config.json": config}


LAYOUTS = {
    "madebyollin/taesd": partial(tiny, 4),
    "madebyollin/taesdxl": partial(tiny, 4),
    "madebyollin/taesd3": partial(tiny, 16),
    "madebyollin/taef1": partial(tiny, 16),
}

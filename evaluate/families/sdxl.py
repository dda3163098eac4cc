"""Stable Diffusion XL: a UNet that attends to two CLIP text encoders, and knows one pooled
embedding and the image's size.

The null prompt is zeros, not the encoding of "" (SDXL base's `force_zeros_for_empty_prompt`, and DMD2's training).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evaluate.families import UNET_LAYERS, Family


class StableDiffusionXL(Family):
    """Stable Diffusion XL."""

    pipelines = ("StableDiffusionXLPipeline",)
    network = "unet"
    tiny_vae = "madebyollin/taesdxl"
    lora_targets = UNET_LAYERS

    @torch.no_grad()
    def encode(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
        """text: [B, tokens, width], both encoders' next-to-last hidden states side by side;
        pooled: [B, width of the second].
        """
        device = pipeline.text_encoder.device  # not the pipeline's, whose other parts may be elsewhere
        text, _, pooled, _ = pipeline.encode_prompt(list(prompts), device=device, do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled}

    def null(self, pipeline: Any) -> dict[str, Tensor]:
        """Zeros; text: [1, tokens, width], pooled: [1, width]."""
        return {key: torch.zeros_like(value) for key, value in self.encode(pipeline, [""]).items()}

    def call(self, network: nn.Module, x: Tensor, t: Tensor, cond: dict[str, Tensor], pixels: int) -> Tensor:
        """The network's raw output, of the shape of x. The image counts as uncropped and as large as it was."""
        size = [pixels * side for side in x.shape[-2:]]
        times = torch.tensor([*size, 0, 0, *size], dtype=x.dtype, device=x.device).expand(len(x), -1)
        added = {"text_embeds": cond["pooled"], "time_ids": times}
        out: Tensor = network(x, t, encoder_hidden_states=cond["text"], added_cond_kwargs=added, return_dict=False)[0]
        return out


family = StableDiffusionXL()

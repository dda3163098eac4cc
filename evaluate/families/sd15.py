"""Stable Diffusion 1.x: a UNet that attends to a CLIP text encoder's last hidden states. The null prompt encodes ""."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evaluate.families import UNET_LAYERS, Family


class StableDiffusion(Family):
    """Stable Diffusion 1.x and 2.x."""

    pipelines = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
    network = "unet"
    tiny_vae = "madebyollin/taesd"
    lora_targets = UNET_LAYERS

    @torch.no_grad()
    def encode(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
        """text: [B, tokens, width]."""
        tokenizer = pipeline.tokenizer
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        )
        text: Tensor = pipeline.text_encoder(tokens.input_ids.to(pipeline.text_encoder.device)).last_hidden_state
        return {"text": text}

    def call(self, network: nn.Module, x: Tensor, t: Tensor, cond: dict[str, Tensor], pixels: int) -> Tensor:
        """The network's raw output, of the shape of x; it is not told the image's size."""
        out: Tensor = network(x, t, encoder_hidden_states=cond["text"], return_dict=False)[0]
        return out


family = StableDiffusion()

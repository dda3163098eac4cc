"""Stable Diffusion 1.x: a UNet that attends to a CLIP text encoder's last hidden states. The null prompt encodes ""."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

network = "unet"
arguments: dict[str, Any] = {}
tiny_vae = "madebyollin/taesd"


@torch.no_grad()
def encode(pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
    """text: [B, tokens, width]."""
    tokenizer = pipeline.tokenizer
    tokens = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    text: Tensor = pipeline.text_encoder(tokens.input_ids.to(pipeline.text_encoder.device)).last_hidden_state
    return {"text": text}


def null(pipeline: Any) -> dict[str, Tensor]:
    """text: [1, tokens, width]."""
    return encode(pipeline, [""])


def call(network: nn.Module, x: Tensor, t: Tensor, conditioning: dict[str, Tensor], pixels: int) -> Tensor:
    """The network's raw output, of the shape of x; it is not told the image's size."""
    out: Tensor = network(x, t, encoder_hidden_states=conditioning["text"], return_dict=False)[0]
    return out

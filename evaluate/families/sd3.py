"""Stable Diffusion 3: a transformer of flow matching that attends to two CLIPs' and T5's hidden states in one row, and
knows the CLIPs' pooled embeddings. The null prompt encodes "".
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evaluate.families import Family


class StableDiffusion3(Family):
    """Stable Diffusion 3 and 3.5."""

    pipelines = ("StableDiffusion3Pipeline",)
    flow = True
    patch = 2
    language_models = ("text_encoder_3",)
    texts_at_once = 8
    tiny_vae = "madebyollin/taesd3"
    lora_targets = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        "net.0.proj", "net.2",
    )  # fmt: skip

    @torch.no_grad()
    def encode(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
        """text: [B, tokens, width], both CLIPs' next-to-last hidden states side by side, then T5's last (zeros without
        a T5); pooled: [B, width], both CLIPs'.
        """
        device = pipeline.text_encoder.device  # not the pipeline's, whose other parts may be elsewhere
        text, _, pooled, _ = pipeline.encode_prompt(
            list(prompts), None, None, device=device, do_classifier_free_guidance=False
        )
        return {"text": text, "pooled": pooled}

    def call(self, network: nn.Module, x: Tensor, t: Tensor, cond: dict[str, Tensor], pixels: int) -> Tensor:
        """The flow, of the shape of x; it is not told the image's size."""
        out: Tensor = network(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=cond["text"],
            pooled_projections=cond["pooled"],
            return_dict=False,
        )[0]
        return out


family = StableDiffusion3()

"""FLUX.1: a transformer of flow matching over latents packed two by two, which attends to T5's hidden states and knows
CLIP's pooled embedding. `dev` is told a guidance scale, which was distilled into it. The null prompt encodes "".
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evaluate.families import Packed


class Flux(Packed):
    """FLUX.1."""

    pipelines: tuple[str, ...] = ("FluxPipeline",)
    flow = True
    language_models: tuple[str, ...] = ("text_encoder_2",)
    texts_at_once = 8
    tiny_vae: str | None = "madebyollin/taef1"
    lora_targets = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        "net.0.proj", "net.2", "proj_mlp", "proj_out",
    )  # fmt: skip

    def size(self, pipeline: Any) -> tuple[int, int]:
        """Of the published ones, 1024 x 1024; the network does not say."""
        edge: int = pipeline.default_sample_size * pipeline.vae_scale_factor
        return edge, edge

    @torch.no_grad()
    def encode(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
        """text: [B, 512, width] of T5; pooled: [B, width] of CLIP."""
        device = pipeline.text_encoder.device  # not the pipeline's, whose other parts may be elsewhere
        text, pooled, _ = pipeline.encode_prompt(list(prompts), None, device=device)
        return {"text": text, "pooled": pooled}

    def call(self, network: nn.Module, x: Tensor, t: Tensor, cond: dict[str, Tensor], pixels: int) -> Tensor:
        """The flow, of the shape of x. Places are rows and columns of two by two latents; those of text are 0."""
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        places = torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width)).to(x)
        rows, time = self.told(self.pack(x), t)
        out: Tensor = network(
            hidden_states=rows,
            timestep=time,
            guidance=cond.get("guidance"),
            encoder_hidden_states=cond["text"],
            pooled_projections=cond["pooled"],
            txt_ids=torch.zeros(cond["text"].shape[1], 3).to(x),
            img_ids=places,
            return_dict=False,
        )[0]
        return self.unpack(out, *x.shape[-2:])


family = Flux()

"""PixArt-alpha: a transformer that attends to T5's hidden states, masked to the prompt's
tokens. The null prompt encodes "".

It also predicts a variance, which one-step generators have no use for (Diff-Instruct++
C.10 keeps the image's channels).
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from evaluate.families import Family


class PixArt(Family):
    """PixArt-alpha."""

    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    patch = 2
    language_models = ("text_encoder",)
    # No cleaning of captions, and the size that is asked for rather than the nearest one of the published networks'.
    arguments = MappingProxyType({"clean_caption": False, "use_resolution_binning": False})
    # None that is right for both: PixArt-alpha's latents are SD1.5's, PixArt-Sigma's SDXL's.
    tiny_vae = None
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "proj_out", "net.0.proj", "net.2")

    @torch.no_grad()
    def encode(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
        """text: [B, 120, width]; mask: [B, 120], 1 where there is a token.

        Prompts are lower-cased; stock diffusers' further cleaning of web captions (`clean_caption`) is left out.
        """
        device = pipeline.text_encoder.device  # not the pipeline's, whose other parts may be elsewhere
        text, mask, _, _ = pipeline.encode_prompt(list(prompts), device=device, do_classifier_free_guidance=False)
        return {"text": text, "mask": mask}

    def call(self, network: nn.Module, x: Tensor, t: Tensor, cond: dict[str, Tensor], pixels: int) -> Tensor:
        """The network's raw output without its variance, of the shape of x."""
        # Networks for 1024 x 1024 are told the image's size; those for less pass over it
        # (stock diffusers gives them None).
        height, width = (pixels * side for side in x.shape[-2:])
        resolution, aspect = (
            torch.tensor([value], dtype=x.dtype, device=x.device) for value in ([height, width], [height / width])
        )
        added = {"resolution": resolution.expand(len(x), -1), "aspect_ratio": aspect.expand(len(x), -1)}
        out: Tensor = network(
            x,
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["mask"],
            timestep=t,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]]


family = PixArt()

"""SANA: a transformer of flow matching with linear attention, which attends to Gemma 2's hidden states of the prompt,
masked to its tokens. Before the prompt stands an instruction to enhance it; the null prompt encodes "" without it.
"""

import inspect
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from evaluate.families import Family


class Sana(Family):
    """SANA."""

    pipelines = ("SanaPipeline",)
    flow = True
    language_models = ("text_encoder",)
    texts_at_once = 8
    # No cleaning of captions, and the size that is asked for rather than the nearest one of the published networks'.
    arguments = MappingProxyType({"clean_caption": False, "use_resolution_binning": False})
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "conv_inverted", "conv_point")

    def encode(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
        """text: [B, 300, width], of the first token and the last 299, with which the prompt ends; mask: [B, 300],
        1 where there is a token.

        Prompts are lower-cased; stock diffusers' further cleaning of web captions (`clean_caption`) is left out.
        """
        # The pipeline's call knows the instruction, and its `encode_prompt` does not.
        call = inspect.signature(type(pipeline).__call__)
        return self._rows(pipeline, prompts, call.parameters["complex_human_instruction"].default)

    def null(self, pipeline: Any) -> dict[str, Tensor]:
        """Of "", without the instruction."""
        return self._rows(pipeline, [""], None)

    @torch.no_grad()
    def _rows(self, pipeline: Any, prompts: Sequence[str], instruction: list[str] | None) -> dict[str, Tensor]:
        device = pipeline.text_encoder.device  # not the pipeline's, whose other parts may be elsewhere
        text, mask, _, _ = pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, device=device, complex_human_instruction=instruction
        )
        return {"text": text, "mask": mask}

    def call(self, network: nn.Module, x: Tensor, t: Tensor, cond: dict[str, Tensor], pixels: int) -> Tensor:
        """The flow, of the shape of x; it is not told the image's size. Some networks count time from 0 to 1."""
        config: Any = network.config
        out: Tensor = network(
            x,
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["mask"],
            timestep=t * config.timestep_scale,
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]]


family = Sana()

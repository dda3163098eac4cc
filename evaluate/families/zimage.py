"""Z-Image: a transformer of flow matching over one row of an image's and a prompt's tokens, those of a language model,
Qwen3, and no padding. Its time is 1 for data, and its output points from noise to data. The null prompt encodes "".
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evaluate.families import Family

TOKENS = 512  # of a prompt at most, stock diffusers' default


class ZImage(Family):
    """Z-Image and Z-Image-Turbo."""

    pipelines = ("ZImagePipeline",)
    flow = True
    patch = 2
    language_models = ("text_encoder",)
    texts_at_once = 8
    tiny_vae = "madebyollin/taef1"  # the autoencoder is FLUX.1's
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3")

    def guided(self, scale: float) -> dict[str, Any]:
        """The pipeline counts guidance from 0."""
        return {"guidance_scale": scale - 1}

    def size(self, pipeline: Any) -> tuple[int, int]:
        """Of the published ones; neither network nor pipeline says."""
        return 1024, 1024

    @torch.no_grad()
    def encode(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
        """text: [B, 512, width], the language model's next-to-last hidden states, zeros behind the prompt's; mask:
        [B, 512], 1 where there is a token.
        """
        # The pipeline's own `encode_prompt` makes a list of prompts of different lengths.
        chats = [
            pipeline.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
            )
            for prompt in prompts
        ]
        padding = {"padding": "max_length", "padding_side": "right", "max_length": TOKENS, "truncation": True}
        tokens = pipeline.tokenizer(chats, return_tensors="pt", **padding)
        mask = tokens.attention_mask.to(pipeline.text_encoder.device)
        text = pipeline.text_encoder(
            input_ids=tokens.input_ids.to(mask.device), attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states[-2]
        return {"text": text * mask[..., None], "mask": mask}

    def call(self, network: nn.Module, x: Tensor, t: Tensor, cond: dict[str, Tensor], pixels: int) -> Tensor:
        """The flow, of the shape of x; it is not told the image's size."""
        lengths = cond["mask"].bool().sum(1).tolist()
        out: list[Tensor] = network(
            list(x.unsqueeze(2)),  # of one frame each
            (1000 - t) / 1000,
            [text[:length] for text, length in zip(cond["text"], lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(out).squeeze(2)


family = ZImage()

"""Qwen-Image: a transformer of flow matching over latents packed two by two, which attends to Qwen2.5-VL's hidden
states of the prompt, masked to its tokens, and knows nothing else of it. The null prompt encodes " ".

The shift of its noise levels is the one that its scheduler finds for the image's size. Its scheduler then stretches a
sampler's times so that the last of them is 0.02 (`shift_terminal`), and that is left out: it depends on how many steps
are drawn, keeps noise alone where it is, and says where a sampler ends, not at which levels the network was trained.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from evaluate.families import Packed

#: Tokens of text that the pipeline's call keeps by default.
TOKENS = 512


class QwenImage(Packed):
    """Qwen-Image."""

    pipelines = ("QwenImagePipeline",)
    flow = True
    language_models = ("text_encoder",)
    texts_at_once = 8
    spare_layers = True  # what the last block makes of the text
    # Its guidance is not told to the network, and has a name of its own.
    arguments = MappingProxyType({"true_cfg_scale": 1.0, "max_sequence_length": TOKENS})
    lora_targets = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        "net.0.proj", "net.2",
    )  # fmt: skip

    def guided(self, scale: float) -> dict[str, Any]:
        """The pipeline guides where it is given a negative prompt, and only there."""
        return {"guidance_scale": 1.0, "true_cfg_scale": scale, "negative_prompt": " "}

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """The first and only frame of the video `[B, C, 1, H, W]`; latents have a mean and a spread for each channel.

        Nothing exceeds [-1, 1]: the autoencoder clamps.
        """
        mean, spread = (
            torch.tensor(values, dtype=latents.dtype, device=latents.device).reshape(-1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        images: Tensor = vae.decode((latents * spread + mean).unsqueeze(2), return_dict=False)[0].squeeze(2)
        return images

    @torch.no_grad()
    def encode(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
        """text: [B, 512, width], without what the template says before the prompt; mask: [B, 512], 1 where there is a
        token.
        """
        # As stock, whose `encode_prompt` also makes logits for every token, and shapes that depend on its neighbours.
        before, encoder = pipeline.prompt_template_encode_start_idx, pipeline.text_encoder
        tokens = pipeline.tokenizer(
            [pipeline.prompt_template_encode.format(prompt) for prompt in prompts],
            max_length=before + TOKENS,
            truncation=True,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        ).to(encoder.device)  # not the pipeline's, whose other parts may be elsewhere
        states, mask = encoder.base_model(**tokens).last_hidden_state[:, before:], tokens.attention_mask[:, before:]
        short = TOKENS - mask.shape[1]
        text = nn.functional.pad(states * mask.unsqueeze(2), (0, 0, 0, short))
        return {"text": text, "mask": nn.functional.pad(mask, (0, short))}

    def null(self, pipeline: Any) -> dict[str, Tensor]:
        """Of " ", which its authors recommend where nothing is to be kept out of the image."""
        return self.encode(pipeline, [" "])

    def call(self, network: nn.Module, x: Tensor, t: Tensor, cond: dict[str, Tensor], pixels: int) -> Tensor:
        """The flow, of the shape of x."""
        height, width = x.shape[-2:]
        rows, time = self.told(self.pack(x), t)
        out: Tensor = network(
            hidden_states=rows,
            timestep=time,
            encoder_hidden_states=cond["text"],
            encoder_hidden_states_mask=cond["mask"],
            img_shapes=[[(1, height // 2, width // 2)]] * len(x),
            return_dict=False,
        )[0]
        return self.unpack(out, height, width)


family = QwenImage()

"""FLUX.2: a transformer of flow matching over latents packed two by two and normalised by statistics that the
autoencoder keeps. It attends to hidden states of three layers of a language model side by side, Qwen3's for `klein` and
Mistral's for `dev`, those of padding among them. `dev` is told a guidance scale, which was distilled into it. The null
prompt encodes "".

Noise levels are those of the scheduler's config, where mu grows from 0.5 at 256 tokens to 1.15 at 4,096, as FLUX.1's.
Stock diffusers draws by another mu, `compute_empirical_mu`, which depends on the number of steps too. For 200 steps,
and for any number of them where an image has more than 4,300 tokens, that is the config's; for fewer steps it is more,
which makes up for steps that are coarse. What a network was trained at cannot depend on how it is drawn with, so the
noise levels of a loss are shifted by the config's unless their `shift` says otherwise.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evaluate.families.flux import Flux


class Flux2(Flux):
    """FLUX.2 klein and dev, whose latents have the shape of FLUX.1's."""

    pipelines = ("Flux2KleinPipeline", "Flux2Pipeline")
    # `madebyollin/taef2` has these latents, but no config, and layers that diffusers' AutoencoderTiny does not know.
    tiny_vae = None
    language_models = ("text_encoder",)
    # `to_out` are the layers of that name; where it is the name of a list, its first is one.
    lora_targets = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        "linear_in", "linear_out", "to_qkv_mlp_proj", "to_out",
    )  # fmt: skip

    def pack(self, latents: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, 4 C, H/2, W/2]`, channels for every two by two."""
        return nn.functional.pixel_unshuffle(latents, 2)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """The autoencoder knows mean and variance of each of the packed channels."""
        spread = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
        mean, spread = (each.to(latents)[:, None, None] for each in (vae.bn.running_mean, spread))
        scaled = nn.functional.pixel_shuffle(self.pack(latents) * spread + mean, 2)
        images: Tensor = vae.decode(scaled, return_dict=False)[0]
        return images

    @torch.no_grad()
    def encode(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
        """text: [B, 512, width], padding included, which the network sees too."""
        device = pipeline.text_encoder.device  # not the pipeline's, whose other parts may be elsewhere
        text, _ = pipeline.encode_prompt(list(prompts), device=device)
        return {"text": text}

    def call(self, network: nn.Module, x: Tensor, t: Tensor, cond: dict[str, Tensor], pixels: int) -> Tensor:
        """The flow, of the shape of x. Places are the number of a reference image, row, column and number of a token;
        of what has none, 0.
        """
        packed = self.pack(x)
        height, width = packed.shape[-2:]
        none, down, across, tokens = (torch.arange(n) for n in (1, height, width, cond["text"].shape[1]))
        rows, time = self.told(packed.flatten(2).transpose(1, 2), t)
        out: Tensor = network(
            hidden_states=rows,
            timestep=time,
            guidance=cond.get("guidance"),
            encoder_hidden_states=cond["text"],
            txt_ids=torch.cartesian_prod(none, none, none, tokens).to(x.device),
            img_ids=torch.cartesian_prod(none, down, across, none).to(x.device),
            return_dict=False,
        )[0]
        return nn.functional.pixel_shuffle(out.transpose(1, 2).unflatten(2, (height, width)), 2)


family = Flux2()

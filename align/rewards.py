"""Rewards: scorers seen through the autoencoder, so that their gradient reaches the generator's latents."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from align.config import Reward
from align.start import hub_id
from evaluate import hub, scorers, weights
from evaluate.pipelines import locate
from prompts.errors import UserError


def load_tiny(source: str) -> Any:
    """The AutoencoderTiny of a folder or a hub id, with `@REVISION` where one is pinned. Every key has to match."""
    from diffusers import AutoencoderTiny

    config, file = "config.json", "diffusion_pytorch_model.safetensors"
    where = hub_id(source)
    folder = locate(where.repository) if where else locate(source)
    if folder is None and where:
        folder = hub.fetch_folder(where.repository, where.revision, allow=[config, file])
    if folder is None or not (folder / config).is_file():
        raise UserError(f"reward_vae = {source}: no tiny autoencoder there; name one, or leave it out")
    options = AutoencoderTiny.load_config(folder)
    if options.get("_class_name") != AutoencoderTiny.__name__:
        raise UserError(
            f"reward_vae = {source}: holds a {options.get('_class_name')}; name a tiny autoencoder, or leave it out"
        )
    vae = AutoencoderTiny.from_config(options)
    weights.load_strict(vae, weights.read(folder / file), folder / file)
    return vae


class Decoder:
    """Latents to pictures, through the pipeline's own autoencoder or a tiny one in its place."""

    def __init__(self, vae: Any, *, tiny: str | None = None, checkpointing: bool = False, device: Any = None):
        vae = vae if tiny is None else load_tiny(tiny)
        self.vae, self.checkpointing = vae.requires_grad_(False).eval().to(device), checkpointing

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents `[B, C, H, W]` to pictures `[B, 3, sH, sW]`, clamped to [0, 1] as those that are saved and scored."""
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        # One picture at a time, since a decoder's activations are larger than a UNet's, also where none are kept.
        parts = [self._recomputed(one) for one in scaled.split(1)] if self.checkpointing else [self._decode(scaled)]
        return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)

    def _recomputed(self, scaled: Tensor) -> Tensor:
        decoded: Tensor = checkpoint(self._decode, scaled, use_reentrant=False)
        return decoded

    def _decode(self, scaled: Tensor) -> Tensor:
        decoded: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return decoded


#: Latents whose reward's activations are kept at once; one where memory is to be saved.
AT_A_TIME = 16


class Rewards:
    """A weighted sum of scorers: `sum_i alpha_i r_i(decode(x0), c)` (DI++ eq. 3.3, DI* eq. 3.3)."""

    def __init__(self, rewards: Sequence[Reward], decoder: Decoder, *, device: Any, dtype: torch.dtype = torch.float32):
        self.decoder, self.scales = decoder, {}
        self.scorers: dict[str, scorers.Scorer] = {}
        for reward in rewards:
            scorer = scorers.load(reward.scorer, device=device, dtype=dtype, weights=reward.weights)
            if not scorer.differentiable:
                raise UserError(
                    f"rewards: {reward.scorer!r} passes no gradient to pictures, so nothing can be trained on it; choose another"
                )
            self.scorers[reward.scorer], self.scales[reward.scorer] = scorer, reward.scale

    def __bool__(self) -> bool:
        return bool(self.scorers)

    def __call__(self, x0: Tensor, prompts: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum `[B]` for latents x0, and each scorer's own scores `[B]` without a graph."""
        return self.of(self.decoder(x0), prompts)

    def some_at_a_time(self, x0: Tensor, prompts: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The same, with the gradient at x0 already taken for a few latents after the other, so that only their activations are kept.

        The weighted sum can be differentiated once.
        """
        size = 1 if self.decoder.checkpointing else AT_A_TIME
        values: list[Tensor] = []
        slopes: list[Tensor] = []
        scores: list[dict[str, Tensor]] = []
        for first in range(0, len(x0), size):
            part = x0[first : first + size].detach().requires_grad_()
            value, each = self(part, prompts[first : first + size])
            slopes += torch.autograd.grad(value.sum(), part)
            values.append(value.detach())
            scores.append(each)
        linear = (x0 - x0.detach()) * torch.cat(slopes)  # zero, and its gradient is the slopes
        total = torch.cat(values) + linear.flatten(1).sum(1)
        return total, {name: torch.cat([each[name] for each in scores]) for name in self.scorers}

    def of(self, pictures: Tensor, prompts: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The same for pictures `[B, 3, H, W]` in [0, 1]."""
        scores = scorers.score_all(self.scorers, pictures, prompts)
        total = torch.stack([self.scales[name] * score for name, score in scores.items()]).sum(0)
        return total, {name: score.detach() for name, score in scores.items()}

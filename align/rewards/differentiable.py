"""Rewards: scorers seen through the autoencoder, so that their gradient reaches the generator's latents."""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from align.options import Config
from align.rewards.decoder import Decoder
from evaluate import scorers
from prompts.io.errors import UserError

#: Latents whose reward's activations are kept at once; one where memory is to be saved.
AT_A_TIME = 16


class Reward(Config):
    """A scorer that training maximises."""

    scorer: str
    scale: float = Field(description="alpha_rew, per image, where the divergence is summed over C, H, W")
    weights: str | None = Field(None, description="a local path in place of the scorer's own")


class Rewards:
    """A weighted sum of scorers: `sum_i alpha_i r_i(decode(x0), c)` (DI++ eq. 3.3, DI* eq. 3.3)."""

    def __init__(
        self,
        rewards: Sequence[Reward],
        decoder: Decoder,
        *,
        device: Any,
        dtype: torch.dtype | None = None,
        random_weights: bool = False,
    ):
        self.decoder, self.scales = decoder, {}
        self.scorers: dict[str, scorers.Scorer] = {}
        for reward in rewards:
            scorer = scorers.load(
                reward.scorer, device=device, dtype=dtype, weights=reward.weights, random_weights=random_weights
            )
            scorer.check_meta(None)
            if not scorer.differentiable:
                raise UserError(
                    f"rewards: {reward.scorer!r} passes no gradient to images, so nothing can be trained on it; choose"
                    " another"
                )
            self.scorers[reward.scorer], self.scales[reward.scorer] = scorer, reward.scale

    def __bool__(self) -> bool:
        return bool(self.scorers)

    def __call__(self, x0: Tensor, prompts: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum `[B]` for latents x0, and each scorer's own scores `[B]` without a graph."""
        return self.of(self.decoder(x0), prompts)

    def some_at_a_time(self, x0: Tensor, prompts: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The same, with the gradient at x0 already taken for a few latents after the other, so that
        only their activations are kept.

        The weighted sum can be differentiated once.
        """
        size = 1 if self.decoder.checkpointing else AT_A_TIME
        values: list[Tensor] = []
        gradients: list[Tensor] = []
        scores: list[dict[str, Tensor]] = []
        for first in range(0, len(x0), size):
            part = x0[first : first + size].detach().requires_grad_()
            value, each = self(part, prompts[first : first + size])
            gradients += torch.autograd.grad(value.sum(), part)
            values.append(value.detach())
            scores.append(each)
        linear = (x0 - x0.detach()) * torch.cat(gradients)  # zero, and its gradient is `gradients`
        total = torch.cat(values) + linear.flatten(1).sum(1)
        return total, {name: torch.cat([each[name] for each in scores]) for name in self.scorers}

    def of(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The same for images `[B, 3, H, W]` in [0, 1]."""
        scores = scorers.score_all(self.scorers, images, prompts)
        total = torch.stack([self.scales[name] * score for name, score in scores.items()]).sum(0)
        return total, {name: score.detach() for name, score in scores.items()}

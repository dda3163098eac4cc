"""The rewards of a config as a term: minus their weighted sum (DI++ eq. 3.3, DI* eq. 3.3)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from align.objectives.term import ByAutograd, Context, Term

if TYPE_CHECKING:
    from align.data.batches import Batch
    from align.objectives.metrics import Metrics


class RewardTerm(ByAutograd):
    """Judges what the generator says is to be judged, and has no gradient for the rest."""

    def __init__(self, context: Context):
        super().__init__("reward", self._loss)
        self.context = context

    def gradient(self, x0: Tensor, batch: "Batch", metrics: "Metrics") -> Tensor:
        """As the protocol has it."""
        if not self.context.generator.is_rewarded(batch):
            return torch.zeros_like(x0)
        return super().gradient(x0, batch, metrics)

    def _loss(self, x0: Tensor, batch: "Batch", metrics: "Metrics") -> Tensor:
        # The gradient at x0 is taken for a few images after the other.
        weighted, each = self.context.rewards.some_at_a_time(x0, batch.prompts)
        for name, score in each.items():
            metrics.add(f"reward/{name}", score.mean())
        return -weighted


def build(options: None, context: Context) -> Term:
    """The term of a run's rewards."""
    return RewardTerm(context)

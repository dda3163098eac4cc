"""The rewards of a config as a term: minus their weighted sum (DI++ eq. 3.3, DI* eq. 3.3)."""

from typing import TYPE_CHECKING

from torch import Tensor

from align.objectives.term import ByAutograd, Context, Term

if TYPE_CHECKING:
    from align.data.batches import Batch
    from align.objectives.metrics import Metrics


def build(options: None, context: Context) -> Term:
    """Its gradient at x0 is taken for a few images after the other."""

    def loss(x0: Tensor, batch: "Batch", metrics: "Metrics") -> Tensor:
        weighted, each = context.rewards.some_at_a_time(x0, batch.prompts)
        for name, score in each.items():
            metrics.add(f"reward/{name}", score.mean())
        return -weighted

    return ByAutograd("reward", loss)

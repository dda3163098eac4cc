"""Any scorer as a `torchmetrics.Metric`: mean and standard error of the scores, merged across batches and processes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from evaluate.scorers import Meta, Scorer
from prompts.io.errors import UserError


def merge_moments(parts: Tensor) -> Tensor:
    """`[K, 3]` rows of (n, mean, sum of squares about the mean) to the `[3]` of their union
    (Chan, Golub and LeVeque 1979).
    """
    n, mean, scatter = parts.unbind(-1)
    total = n.sum()
    centre = (n * mean).sum() / total.clamp_min(1)
    return torch.stack([total, centre, (scatter + n * (mean - centre).square()).sum()])


class ScorerMetric(Metric):
    """Mean of a scorer's scores, and its standard error. UserError for a scorer whose mean is one of groups' means.

    >>> from evaluate import scorers
    >>> from prompts.shapes import render, sample_captions
    >>> captions = sample_captions(4, split="test", seed=0)
    >>> metric = ScorerMetric(scorers.load("shapes/oracle"))
    >>> metric.update(torch.from_numpy(render(captions, seed=0)), captions)
    >>> int(metric.compute()["n"])
    4
    """

    full_state_update: bool | None = False
    higher_is_better: bool | None = True
    is_differentiable: bool | None = False

    moments: Tensor

    def __init__(self, scorer: Scorer, **options: Any) -> None:
        super().__init__(**options)
        if scorer.macro:
            raise UserError(
                f"{scorer.protocol} is a mean of groups' means, which texts do not tell; use 'evaluate run'"
            )
        self.scorer = scorer
        self.add_state("moments", torch.zeros(3, dtype=torch.float64), dist_reduce_fx=merge_moments)

    def update(self, images: Tensor | Sequence[Tensor], prompts: Sequence[str], meta: Meta | None = None) -> None:
        """Add images `[B, 3, H, W]`, or a list of them, their prompts, and what the scorer needs to know of these.

        Of a scorer with several columns it is the first. A score that is no number is a ValueError.
        """
        with torch.no_grad():
            scores = self.scorer.score(images, prompts, meta).double()
        if not scores.isfinite().all():
            bad = int(torch.nonzero(~scores.isfinite())[0, 0])
            raise ValueError(
                f"{self.scorer.protocol}: the score of image {bad} is {scores[bad].item()}; look at the image"
            )
        mean = scores.mean()
        moments = torch.stack([scores.new_tensor(len(scores)), mean, (scores - mean).square().sum()])
        self.moments = merge_moments(torch.stack([self.moments, moments.to(self.moments.device)]))

    def compute(self) -> dict[str, Tensor]:
        """`mean`, `standard_error` (of independent scores; NaN below two) and `n`, scalars in float64."""
        n, mean, scatter = self.moments
        return {"mean": mean, "standard_error": (scatter / (n - 1) / n).sqrt() if n > 1 else mean * torch.nan, "n": n}

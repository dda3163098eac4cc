"""Several images per prompt, of which the one that a scorer likes best is kept: what any training
has to beat at the same reward.

The first candidate is the image that the model draws without this, so the score never falls. Against the
model's own distribution the KL divergence is at most log n - (n - 1) / n (Beirami et al. 2024, theorem 1), and
n times as long is spent on drawing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from evaluate import scorers
from evaluate.pipelines.recipe import Recipe
from evaluate.samplers import SamplerOptions, stock


class BestOfOptions(SamplerOptions):
    """n: candidates per image. scorer: what chooses, by its default weights."""

    n: int = Field(ge=2)
    scorer: str


class BestOf:
    """Best of n."""

    def __init__(self, options: BestOfOptions):
        self.options, self.stock = options, stock.Stock(SamplerOptions())
        self.scorer = scorers.load(options.scorer)
        self.scorer.check_meta(None)
        self.weights_sha256 = self.scorer.weights_sha256

    @torch.no_grad()
    def draw(
        self,
        pipeline: Any,
        recipe: Recipe,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        keys: Sequence[str],
        **overrides: Any,
    ) -> Tensor:
        """Images `[B, 3, H, W]`; a candidate after the first has the key `KEY\\0candidate I`."""
        scorer = self.scorer.to(pipeline.device)
        best = self.stock.draw(pipeline, recipe, prompts, seeds=seeds, keys=keys, **overrides)
        highest = scorer.score(best, prompts)
        for i in range(1, self.options.n):
            candidate_keys = [f"{key}\0candidate {i}" for key in keys]
            images = self.stock.draw(pipeline, recipe, prompts, seeds=seeds, keys=candidate_keys, **overrides)
            score = scorer.score(images, prompts)
            # What is not finite is never better, and always worse.
            better = score.isfinite() & ~(highest.isfinite() & (score <= highest))
            best[better], highest = images[better], torch.where(better, score, highest)
        return best


Options, build = BestOfOptions, BestOf

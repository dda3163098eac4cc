"""Ways to draw images from a loaded pipeline: by its own call, or as something around it does.

A file here, or in an extension's `samplers/`, is a way where it has `Options`, a pydantic model, and `build(options) ->
Sampler`. A recipe asks for it: `sampler: {name: best_of, n: 4, scorer: pickscore}`.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from evaluate.pipelines.recipe import Recipe
from prompts import extensions
from prompts.io.validate import validate

__path__ = extensions.extended(__path__, "samplers")


class SamplerOptions(BaseModel):
    """What a recipe says of its sampler besides the name: nothing, unless a way to draw asks for more."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Sampler(Protocol):
    """Draws images of prompts.

    weights_sha256: of what it reads besides the model, which images then depend on; None for nothing.
    """

    weights_sha256: str | None

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
        """Images `[B, 3, H, W]`, float32 in [0, 1], one per prompt, on the pipeline's device.

        Everything random in an image depends on its seed and its key alone, whatever is drawn beside it. overrides: of
        the arguments that the recipe gives the pipeline's call.
        """


def names() -> list[str]:
    """The ways there are."""
    return extensions.names(__name__, "build")


def make(recipe: Recipe) -> Sampler:
    """What draws as a recipe wants it. Raises UserError for an unknown name or option."""
    return _made(json.dumps(recipe.sampler or {}, default=str))


@lru_cache(1)  # one that reads weights is asked for its hash before it draws
def _made(content: str) -> Sampler:
    options = json.loads(content)
    name = str(options.get("name", "stock"))
    module = extensions.member(__name__, name, "build", what="sampler.name")
    given = {key: value for key, value in options.items() if key != "name"}
    chosen = validate(module.Options, given, f"sampler {name}")
    sampler: Sampler = module.build(chosen)
    return sampler


def draw(
    pipeline: Any,
    recipe: Recipe,
    prompts: Sequence[str],
    *,
    seed: int | Sequence[int],
    keys: Sequence[str] | None = None,
    **overrides: Any,
) -> Tensor:
    """Images `[B, 3, H, W]`, float32 in [0, 1], as the recipe draws them, on the pipeline's device.

    seed: one for all or one each. keys: what else an image's noise depends on, by default its prompt.
    """
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    return make(recipe).draw(pipeline, recipe, prompts, seeds=seeds, keys=keys or prompts, **overrides)

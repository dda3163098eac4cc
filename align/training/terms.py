"""The terms that a config asks for.

`method` is what people write; here it becomes terms, and nowhere else is a loss chosen by its name.
"""

from typing import Any

from align.config.methods import METHODS
from align.config.train import TrainConfig
from align.objectives.guidance import GuidanceReward
from align.objectives.term import Context, Term
from prompts.extensions import member
from prompts.io.validate import validate


def terms(config: TrainConfig, context: Context) -> list[Term]:
    """The terms of the student's loss, in the order of their sum, and those that `terms` adds.

    DI* eq. 3.3, DI++ eq. 3.7-3.9.
    """
    wanted: list[tuple[str, Any]] = [(METHODS[config.method].divergence, config.divergence)]
    if config.guidance.where == "reward":
        wanted.append(("guidance", GuidanceReward(config.guidance.scale, config.divergence.weight)))
    if context.rewards:
        wanted.append(("reward", None))
    for name, content in config.terms.items():
        options = member("align.objectives", name, "Options", what="terms").Options
        wanted.append((name, validate(options, content, lambda field, name=name: f"terms.{name}.{field}")))  # type: ignore[misc]
    return [member("align.objectives", name, "build", what="terms").build(options, context) for name, options in wanted]

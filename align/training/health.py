"""Why a run ends by itself."""

import json
import math
import statistics
from collections import deque
from pathlib import Path

from prompts.errors import UserError

#: A figure this many times its recent median is an explosion.
EXPLOSION = 1e4


class Stopped(UserError):
    """Training ended by itself before its last step. step: the one it ended at."""

    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step = step


class Diverged(Stopped):
    """A loss became infinite, NaN, or far too large."""


class Guarded(Stopped):
    """The guard saw a held-out score fall while the reward rose."""


def _check(
    values: dict[str, float], recent: dict[str, deque[float]], step: int, prompts: list[str], output: Path, *, main: bool
) -> None:
    """Raise Diverged, and leave the batch's prompts in `failed-batch.json`, when a figure is not finite or has exploded."""
    for name, value in values.items():
        past = recent.setdefault(name, deque(maxlen=50))
        # A divergence's value may be anything, also near zero; gradients and squared errors may not jump.
        exploded = (
            name.endswith(("assistant", "gradient"))
            and len(past) >= 20
            and value > EXPLOSION * max(statistics.median(past), 1e-12)
        )
        if not math.isfinite(value) or exploded:
            if main:
                (output / "failed-batch.json").write_text(
                    json.dumps({"step": step, "term": name, "value": str(value), "prompts": prompts}, indent=1)
                )
            raise Diverged(
                step,
                f"step {step}: {name} is {value:g}; lower the learning rates or the reward's scale, then --resume (prompts in {output / 'failed-batch.json'})",
            )
        past.append(value)

"""Why a run ends by itself."""

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from prompts.io.errors import UserError
from prompts.io.files import write_json

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


class Health:
    """What a step's numbers have been lately, and whether they still make sense."""

    def __init__(self, folder: Path, *, writes: bool):
        """folder: the run's. writes: whether this process writes there."""
        self.file, self.writes = folder / "failed-batch.json", writes
        self.recent: dict[str, deque[float]] = {}

    def check(self, values: Mapping[str, float], step: int, prompts: Sequence[str]) -> None:
        """Raise Diverged, and leave `prompts` in `failed-batch.json`, when a number
        is not finite or has exploded.

        prompts: of the micro-batch that this process had last.
        """
        for name, value in values.items():
            past = self.recent.setdefault(name, deque(maxlen=50))
            # A divergence's value may be anything, also near zero; gradients and squared errors may not jump.
            exploded = (
                name.endswith(("assistant", "gradient"))
                and len(past) >= 20
                and value > EXPLOSION * statistics.median(past)
            )
            if not math.isfinite(value) or exploded:
                if self.writes:
                    content = {"step": step, "term": name, "value": str(value), "prompts": list(prompts)}
                    write_json(self.file, content)
                raise Diverged(
                    step,
                    f"step {step}: {name} is {value:g}; start again with lower learning rates or a lower reward scale "
                    f"(prompts in {self.file})",
                )
            if value:  # zero: the term had no part in that step, as where few-step training rewards the last alone
                past.append(value)

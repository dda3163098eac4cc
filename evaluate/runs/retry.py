"""What fails for many items at once is done for fewer, so that an error is its own item's alone."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch

from prompts.io.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


class RetryInHalves(Generic[T, R]):
    """Does `function` to many items at once; where that fails, to each half, down to the single item that fails.

    That item's outcome is its error. Once memory has run short at some size, no more than half of that is tried again,
    and `say` has said so; the outcomes say it too.
    """

    def __init__(self, function: Callable[[Sequence[T]], Sequence[R]], *, name: str, say: Callable[[str], Any]):
        self.function, self.name, self.say = function, name, say
        self.largest: float = math.inf

    def __call__(self, items: Sequence[T]) -> list[tuple[R | None, str | None, int]]:
        """Per item its result or None, its error or None, and how many were done at once."""
        if 1 < len(items) > self.largest:
            return self._halves(items)
        try:
            return [(result, None, len(items)) for result in self.function(items)]
        except UserError:
            raise
        except Exception as error:
            if _memory_is_short(error) and len(items) > 1:
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                self.largest = (len(items) + 1) // 2
                short = f"{self.name}: no memory for {len(items)} at once"
                self.say(f"{short}; continuing with {self.largest}")
            if len(items) == 1:
                return [(None, f"{type(error).__name__}: {error}".splitlines()[0], 1)]
        return self._halves(items)

    def _halves(self, items: Sequence[T]) -> list[tuple[R | None, str | None, int]]:
        middle = (len(items) + 1) // 2
        return self(items[:middle]) + self(items[middle:])


def _memory_is_short(error: Exception) -> bool:
    # On a CPU torch raises a plain RuntimeError.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)

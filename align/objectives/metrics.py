"""The numbers of a step."""

import torch
from torch import Tensor


class Metrics:
    """A step's scalars, summed as they come. share: what a micro-batch counts; prompts: the last one's."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.share = 1.0
        self.prompts: list[str] = []

    def add(self, name: str, value: Tensor) -> None:
        """Add a micro-batch's mean."""
        value = value.detach() * self.share
        self.values[name] = self.values[name] + value if name in self.values else value

    def set(self, name: str, value: Tensor) -> None:
        """Note what is of the whole step, in place of what was noted before."""
        self.values[name] = value.detach()

    def stacked(self) -> Tensor:
        """All values `[N]`, float64."""
        return torch.stack([value.double().reshape(()) for value in self.values.values()])

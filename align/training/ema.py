"""The average of the weights, which is what a run leaves."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from align.networks.sharding import like


class EMA:
    """Exponential moving average of a module's trainable parameters. With a decay of 0 it is they, and nothing beside
    them.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float):
        self.decay, self.live = decay, parameters
        self.values = {name: value.detach() for name, value in parameters.items()}
        if decay:
            self.values = {name: value.clone() for name, value in self.values.items()}

    def update(self) -> None:
        """One step of `average <- decay * average + (1 - decay) * live`."""
        if self.decay:
            torch._foreach_lerp_(list(self.values.values()), [p.detach() for p in self.live.values()], 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name; nothing where they are the parameters themselves."""
        return self.values if self.decay else {}

    def load_state_dict(self, values: dict[str, Tensor]) -> None:
        """Undo `state_dict`."""
        for name, value in self.values.items() if self.decay else ():
            value.copy_(like(values[name], value))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within: the module holds the averaged parameters."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the module's parameters and their averages."""
        for name, parameter in self.live.items() if self.decay else ():
            held = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(held)

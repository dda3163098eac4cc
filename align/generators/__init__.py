"""Generators: how the student's network makes an image of a batch's noise.

A file here, or in an extension's `generators/`, is one where it has `Options`, a `config.GeneratorOptions` with what else it wants to be
told, and `build(options, preconditioning, source=...) -> Generator`; source is what to call the reference in an error."""

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from prompts.extensions import extended

__path__ = extended(__path__, "generators")

if TYPE_CHECKING:
    from align.data.batches import Batch


class Generator(Protocol):
    """Makes clean latents, and knows the stock scheduler that draws the same."""

    def sample(self, network: nn.Module, batch: "Batch") -> Tensor:
        """x0 `[B, ...]` of a batch, with a graph to the network's parameters where gradients are on."""

    def export(self, scheduler: Any) -> tuple[Any, dict[str, Any]]:
        """The stock scheduler with which diffusers draws what `sample` makes of the same noise, and the recipe that calls it.

        scheduler: the reference's."""

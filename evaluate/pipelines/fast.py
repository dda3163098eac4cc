"""What makes a network faster on a GPU and leaves what it computes as it is, but for rounding."""

import warnings
from typing import Any

import torch
from torch import nn

#: Variants of one block that may be compiled: roles, with and without gradients, at each size of its input.
VARIANTS = 64


def compile_blocks(network: nn.Module) -> None:
    """Have torch.compile see to a network's repeated blocks, in which it spends its time: each kind is compiled once,
    in seconds, and not the whole network in minutes.

    They are those that diffusers names; where it names none, the entries of the lists of modules right below.
    """
    named: Any = getattr(network, "_repeated_blocks", None) or ()
    blocks = [module for module in network.modules() if type(module).__name__ in named]
    lists = [child for child in network.children() if isinstance(child, nn.ModuleList)]
    torch._dynamo.config.recompile_limit = VARIANTS
    for message in ("The .grad attribute of a Tensor that is not a leaf", "Dynamo detected a call to a `functools"):
        warnings.filterwarnings("ignore", message=message)  # of what torch.compile itself does
    for block in blocks or [block for each in lists for block in each]:
        block.compile()


def tune(pipeline: Any, *, compiled: bool, channels_last: bool) -> None:
    """Compile a pipeline's network and its decoder by blocks; keep the channels of convolutions last."""
    networks = [part for name in ("unet", "transformer") if (part := getattr(pipeline, name, None)) is not None]
    decoder = pipeline.vae.get_submodule("decoder")
    if channels_last:
        for parameter in (each for module in (*networks, decoder) for each in module.parameters()):
            if parameter.dim() == 4:  # of five there are those of a video's autoencoder
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    if compiled:
        for module in (*networks, decoder):
            compile_blocks(module)

"""Frozen layers in 8 or 4 bits, under LoRA: what training needs of them is their product and that product's gradient.

Weights are rounded block by block by bitsandbytes (Dettmers et al. 2021, arXiv 2110.02861, section 2.1; 2023, arXiv
2305.14314, section 3, without its second rounding of the blocks' scales) and made whole again, layer by layer, where
they are used. Activations are not rounded.
"""

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prompts.io.errors import UserError

Bits = Literal["8bit", "4bit"]
#: Weights that share a scale of float32.
BLOCK = {"8bit": 256, "4bit": 64}


class QuantizedLinear(nn.Linear):
    """A frozen linear layer that keeps its weights rounded.

    A state dict has them whole, as they are computed with.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear, bits: Bits, *, device: Any = None):
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bits, self.dtype = bits, layer.weight.dtype
        codes, scales = _rounded(layer.weight.detach().to(device).float().contiguous(), bits)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.bias = layer.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weights `[out, in]`, made anew."""
        return _whole(self.codes, self.scales, self.bits, (self.out_features, self.in_features), self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output; a gradient reaches x alone."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype
        product: Tensor = _Product.apply(x.to(dtype), self)
        return product if self.bias is None else product + self.bias.to(dtype)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight.cpu()  # all of them whole would not fit beside the run


class _Product(torch.autograd.Function):
    """`x W^T`. What it keeps for its gradient is the layer, not the whole weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return x @ layer.weight.to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.weight.to(grad.dtype), None


def quantize(network: nn.Module, targets: Sequence[str], bits: Bits, *, device: Any = None) -> None:
    """Round the network's linear layers whose names end in one of `targets`, each moved to `device` before.

    Raises UserError where bitsandbytes is missing or there is none.
    """
    layers = [
        (name, layer)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and any(f".{name}".endswith(f".{target}") for target in targets)
    ]
    if not layers:
        raise UserError(f"lora.base {bits}: the network has no linear layer under lora.target_modules; leave it out")
    for name, layer in layers:
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, QuantizedLinear(layer, bits, device=device))


def _rounded(weight: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    if bits == "4bit":
        codes, scales = _operations().quantize_4bit(weight, BLOCK[bits], "nf4", torch.uint8)
    else:
        codes, scales = _operations().quantize_blockwise(weight, _levels().to(weight.device), BLOCK[bits])
    return codes, scales


def _whole(codes: Tensor, scales: Tensor, bits: Bits, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    if bits == "4bit":
        weight: Tensor = _operations().dequantize_4bit(codes, scales, BLOCK[bits], "nf4", shape, dtype)
    else:
        levels = _levels().to(codes.device)
        weight = _operations().dequantize_blockwise(codes, scales, levels, BLOCK[bits], dtype)
    return weight


@cache
def _operations() -> Any:
    try:
        importlib.import_module("bitsandbytes")
    except ImportError:
        raise UserError(
            "lora.base: bitsandbytes is not installed; install 'onestep-align[8bit]', or leave lora.base out"
        ) from None
    return torch.ops.bitsandbytes


@cache
def _levels() -> Tensor:
    """The 256 numbers that a weight of 8 bits can be, of its block's largest."""
    with torch.device("cpu"):  # whatever networks are being made on, on a tensor without numbers above all
        levels: Tensor = importlib.import_module("bitsandbytes.functional").create_dynamic_map()
    return levels

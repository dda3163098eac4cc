"""The Inception network of FID (Szegedy et al. 2015, as TensorFlow published it on 2015-12-05) up to its last pooling.

It is not torchvision's: average pooling does not count the padding, and the last block pools by maximum. Modules and weights
are named as in the TorchScript file that clean-fid fetches, `inception-2015-12-05.pt`, of which `convert` makes a plain file.
"""

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from evaluate import weights
from prompts.errors import UserError

SIZE = 299  # pixels a side that it takes
WIDTH = 2048  # features that it gives


class Conv(nn.Module):
    """Convolution, batch normalisation without a scale, ReLU. kernel: height and width. same: padded to keep the size."""

    mean: Tensor
    var: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], *, stride: int = 1, same: bool = True):
        super().__init__()
        self.stride, self.padding = stride, (kernel[0] // 2, kernel[1] // 2) if same else (0, 0)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *kernel))
        self.beta = nn.Parameter(torch.empty(outputs))
        self.register_buffer("mean", torch.empty(outputs))
        self.register_buffer("var", torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` -> `[B, outputs, H', W']`."""
        x = functional.conv2d(x, self.weight, stride=self.stride, padding=self.padding)
        return functional.batch_norm(x, self.mean, self.var, bias=self.beta, eps=1e-3).relu()


class Block(nn.Module):
    """Branches side by side, their outputs concatenated in the order given."""

    def __init__(self, **branches: nn.Module):
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, sum of the branches' C, H', W']`."""
        return torch.cat([branch(x) for branch in self.children()], 1)


class BlockE(nn.Module):
    """The block whose two towers end in a pair of convolutions each."""

    def __init__(self, inputs: int, pool: nn.Module):
        super().__init__()
        self.conv = Conv(inputs, 320, (1, 1))
        self.tower_conv = Conv(inputs, 384, (1, 1))
        self.tower_mixed_conv, self.tower_mixed_conv_1 = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.tower_1_conv, self.tower_1_conv_1 = Conv(inputs, 448, (1, 1)), Conv(448, 384, (3, 3))
        self.tower_1_mixed_conv, self.tower_1_mixed_conv_1 = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.tower_2_pool, self.tower_2_conv = pool, Conv(inputs, 192, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` -> `[B, 2048, H, W]`."""
        a, b = self.tower_conv(x), self.tower_1_conv_1(self.tower_1_conv(x))
        pairs = [self.tower_mixed_conv(a), self.tower_mixed_conv_1(a), self.tower_1_mixed_conv(b), self.tower_1_mixed_conv_1(b)]
        return torch.cat([self.conv(x), *pairs, self.tower_2_conv(self.tower_2_pool(x))], 1)


def _tower(*layers: nn.Module) -> nn.Sequential:
    """Layers named `conv`, `conv_1`, ... and, for one that is no convolution, `pool`."""
    named, count = OrderedDict[str, nn.Module](), 0
    for layer in layers:
        if isinstance(layer, Conv):
            named[f"conv_{count}" if count else "conv"], count = layer, count + 1
        else:
            named["pool"] = layer
    return nn.Sequential(named)


def _average() -> nn.AvgPool2d:
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def _a(inputs: int, pooled: int) -> Block:
    return Block(
        conv=Conv(inputs, 64, (1, 1)),
        tower=_tower(Conv(inputs, 48, (1, 1)), Conv(48, 64, (5, 5))),
        tower_1=_tower(Conv(inputs, 64, (1, 1)), Conv(64, 96, (3, 3)), Conv(96, 96, (3, 3))),
        tower_2=_tower(_average(), Conv(inputs, pooled, (1, 1))),
    )


def _b(inputs: int) -> Block:
    return Block(
        conv=Conv(inputs, 384, (3, 3), stride=2, same=False),
        tower=_tower(Conv(inputs, 64, (1, 1)), Conv(64, 96, (3, 3)), Conv(96, 96, (3, 3), stride=2, same=False)),
        pool=nn.MaxPool2d(3, stride=2),
    )


def _c(inputs: int, width: int) -> Block:
    row, column = (1, 7), (7, 1)
    return Block(
        conv=Conv(inputs, 192, (1, 1)),
        tower=_tower(Conv(inputs, width, (1, 1)), Conv(width, width, row), Conv(width, 192, column)),
        tower_1=_tower(
            Conv(inputs, width, (1, 1)),
            *(Conv(width, width, kernel) for kernel in (column, row, column)),
            Conv(width, 192, row),
        ),
        tower_2=_tower(_average(), Conv(inputs, 192, (1, 1))),
    )


def _d(inputs: int) -> Block:
    return Block(
        tower=_tower(Conv(inputs, 192, (1, 1)), Conv(192, 320, (3, 3), stride=2, same=False)),
        tower_1=_tower(
            Conv(inputs, 192, (1, 1)),
            Conv(192, 192, (1, 7)),
            Conv(192, 192, (7, 1)),
            Conv(192, 192, (3, 3), stride=2, same=False),
        ),
        pool=nn.MaxPool2d(3, stride=2),
    )


class Inception(nn.Sequential):
    """Pictures `[B, 3, 299, 299]` in [0, 255] -> features `[B, 2048]`, >= 0."""

    def __init__(self) -> None:
        super().__init__(
            OrderedDict(
                conv=Conv(3, 32, (3, 3), stride=2, same=False),
                conv_1=Conv(32, 32, (3, 3), same=False),
                conv_2=Conv(32, 64, (3, 3)),
                pool0=nn.MaxPool2d(3, stride=2),
                conv_3=Conv(64, 80, (1, 1)),
                conv_4=Conv(80, 192, (3, 3), same=False),
                pool1=nn.MaxPool2d(3, stride=2),
                mixed=_a(192, 32),
                mixed_1=_a(256, 64),
                mixed_2=_a(288, 64),
                mixed_3=_b(288),
                mixed_4=_c(768, 128),
                mixed_5=_c(768, 160),
                mixed_6=_c(768, 160),
                mixed_7=_c(768, 192),
                mixed_8=_d(768),
                mixed_9=BlockE(1280, _average()),
                mixed_10=BlockE(2048, nn.MaxPool2d(3, stride=1, padding=1)),
                pool2=nn.AvgPool2d(8),
            )
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Scaled as clean-fid does for pictures that are resized already: to [-1, 1)."""
        features: Tensor = super().forward((pictures - 128) / 128)
        return features.flatten(1)


def load(path: Path, device: Any = "cpu") -> Inception:
    """The network with the weights of a plain file, frozen."""
    network = Inception()
    weights.load_strict(network, weights.read(path), path)
    return network.to(device).eval().requires_grad_(False)


def convert(torchscript: Path, output: Path) -> None:
    """Write the tensors of clean-fid's TorchScript file as safetensors; whose sha256 names them from then on."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch calls its own format deprecated
            content = torch.jit.load(torchscript, map_location="cpu").state_dict()
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{torchscript}: not a TorchScript file ({str(error).splitlines()[0]}); give clean-fid's inception-2015-12-05.pt"
        ) from None
    prefix = "layers."
    tensors = {key.removeprefix(prefix): value.float().contiguous() for key, value in content.items() if key.startswith(prefix)}
    weights.load_strict(Inception(), tensors, torchscript)
    save_file(tensors, output, metadata={"source": torchscript.name, "source_sha256": weights.sha256(torchscript)})

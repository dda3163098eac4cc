"""LPIPS (Zhang et al. 2018) as the package `lpips` computes it by default: AlexNet, version 0.1.

Features of five layers of torchvision's AlexNet, whose weights are fetched on first use, of unit norm over channels; a
distance is the mean over positions of their squared difference, weighed by channel with the package's calibrated
weights, which torchmetrics ships byte for byte, and summed over layers.
"""

import importlib.metadata
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluate import weights

URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
SHA256 = "7be5be79"  # how it begins, which is all that its publisher says
#: Of torchmetrics' `lpips_models/alex.pth`, and of lpips 0.1.4's `weights/v0.1/alex.pth`.
HEADS_SHA256 = "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"
#: Where each layer that is compared ends in torchvision's `features`.
LAYERS = (2, 5, 8, 10, 12)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPSILON = 1e-10


class Lpips(nn.Module):
    """Images `[N, 3, H, W]` in [0, 1] -> the mean distance of their pairs."""

    def __init__(self, trunk: nn.Sequential, heads: list[Tensor]) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, heads

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Of two images at least, a scalar."""
        shift, scale = (images.new_tensor(each)[:, None, None] for each in (SHIFT, SCALE))
        x, begin = (2 * images - 1 - shift) / scale, 0
        layers = []
        for end in LAYERS:
            x = self.trunk[begin:end](x)
            layers.append(x / (x.square().sum(1, keepdim=True).sqrt() + EPSILON))
            begin = end
        return torch.stack(
            [
                (layer[a] - layer[b]).square().mean((1, 2)) @ head.to(layer)
                for a, b in combinations(range(len(images)), 2)
                for layer, head in zip(layers, self.heads, strict=True)
            ]
        ).mean() * len(LAYERS)


def load_network(device: Any, path: str | None) -> tuple[Lpips, str]:
    """The distance, and the sha256 of both files of weights. path: AlexNet's, in place of the one that is fetched."""
    from torchvision.models import alexnet

    file = Path(path) if path else weights.download(URL, SHA256, what="AlexNet's weights, 233 MiB", kind="alexnet")
    package = Path(str(importlib.metadata.distribution("torchmetrics").locate_file("torchmetrics")))
    calibrated = package / "functional" / "image" / "lpips_models" / "alex.pth"
    weights.Files().sha256(calibrated, expected=HEADS_SHA256)
    with torch.device("meta"):  # its classifier, which is most of it, is not needed
        trunk = alexnet(weights=None).features
    tensors = {key: value for key, value in weights.read(file).items() if not key.startswith("classifier.")}
    trunk = trunk.to_empty(device="cpu")
    weights.load_strict(trunk, {key.removeprefix("features."): value for key, value in tensors.items()}, file)
    heads = [weight.flatten() for _, weight in sorted(weights.read(calibrated).items())]
    network = Lpips(trunk.to(device).eval().requires_grad_(False), heads)
    return network, weights.sha256(file, calibrated)

"""What GenEval's detector sees in an image: as MMDetection's `inference_detector` prepares the image, and as its
Mask2Former makes boxes and scores of masks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evaluate.scorers import _mask2former

#: The image is scaled until its longer edge is LONG or its shorter one SHORT, whatever comes first.
LONG, SHORT, MULTIPLE = 1333, 800, 32
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
GREY = 128.0  # what the sides are filled up with, before MEAN and STD
MOST = 100  # pairs of a mask and a class that are looked at


class Detection(NamedTuple):
    """One object. label: its class. box: left, top, right, bottom in pixels, the last two exclusive.

    confidence: in [0, 1], of its class times that of its mask. mask: bool `[H, W]`, of the image's size.
    """

    label: int
    box: tuple[int, int, int, int]
    confidence: float
    mask: Tensor


class Detector(nn.Module):
    """The detector without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.network = _mask2former.network()

    def forward(self, image: Tensor, *, threshold: float) -> list[Detection]:
        """The objects of an image `[3, H, W]`, uint8, of more confidence than `threshold`."""
        size = resized(*image.shape[1:])
        pixels = prepare(image)
        out = self.network(pixel_values=pixels[None].to(self.network.dtype))
        logits = out.class_queries_logits[0].float(), out.masks_queries_logits[0].float()
        return instances(*logits, padded=pixels.shape[1:], inner=size, outer=image.shape[1:], threshold=threshold)


def resized(height: int, width: int) -> tuple[int, int]:
    """Height and width of an image for the network, without the padding."""
    scale = min(LONG / max(height, width), SHORT / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def prepare(image: Tensor) -> Tensor:
    """What the network takes of an image `[3, H, W]`, uint8: `[3, h, w]`, float32, normalised."""
    height, width = resized(*image.shape[1:])
    pixels = bilinear(image, height, width).float()
    padded = F.pad(pixels, (0, -width % MULTIPLE, 0, -height % MULTIPLE), value=GREY)
    mean, std = (padded.new_tensor(each)[:, None, None] for each in (MEAN, STD))
    return (padded - mean) / std


def bilinear(image: Tensor, height: int, width: int) -> Tensor:
    """An image `[3, H, W]`, uint8, resized without antialiasing, to the bit as OpenCV does it in integers: 11 bits of
    weight, columns first, 4 bits dropped between the two.
    """
    (rows, down), (columns, across) = _taps(image, 1, height), _taps(image, 2, width)
    x = image.int()
    x = (x[:, :, columns[0]] * across[0] + x[:, :, columns[1]] * across[1]) >> 4
    x = (x[:, rows[0]] * down[0][:, None] >> 16) + (x[:, rows[1]] * down[1][:, None] >> 16)
    return ((x + 2) >> 2).to(torch.uint8)


def _taps(image: Tensor, dim: int, after: int) -> tuple[Tensor, Tensor]:
    """The two pixels that make one, `[2, after]`, and their weights of 2,048 in all."""
    before = image.shape[dim]
    centres = ((torch.arange(after, dtype=torch.float64) + 0.5) * (1 / (after / before)) - 0.5).float()
    first = centres.floor()
    second = centres - first
    if dim == 2:  # OpenCV gives a column beyond the edge no weight, and a row its own: these round otherwise
        second = second.masked_fill((first < 0) | (first >= before - 1), 0)
    pixels = torch.stack([first, first + 1]).long().clamp(0, before - 1)
    weights = (torch.stack([1 - second, second]) * 2048).round().int()
    return pixels.to(image.device), weights.to(image.device)


def instances(
    classes: Tensor,
    masks: Tensor,
    *,
    padded: Sequence[int],
    inner: Sequence[int],
    outer: Sequence[int],
    threshold: float,
) -> list[Detection]:
    """What the logits `[Q, C + 1]` and `[Q, h, w]` say, most certain classes first.

    padded, inner, outer: height and width of what the network was given, of the image in it, and of the image itself.
    """
    of_class = classes.softmax(-1)[:, :-1]
    best, pairs = of_class.flatten().topk(MOST)
    # A mask adds to no confidence, so what is below the threshold without it needs none.
    best, pairs = best[best > threshold], pairs[best > threshold]
    if not len(pairs):
        return []
    queries, labels = pairs // of_class.shape[1], pairs % of_class.shape[1]
    whole = F.interpolate(masks[queries, None], size=tuple(padded), mode="bilinear")[:, :, : inner[0], : inner[1]]
    whole = F.interpolate(whole, size=tuple(outer), mode="bilinear")[:, 0]
    inside = whole > 0
    certain = (whole.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    confidence = best * certain
    return [
        Detection(int(labels[i]), box(inside[i]), confidence[i].item(), inside[i])
        for i in (confidence > threshold).nonzero()[:, 0].tolist()
    ]


def box(mask: Tensor) -> tuple[int, int, int, int]:
    """Around a mask that is not empty."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

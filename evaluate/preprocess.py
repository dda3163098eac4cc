"""What a scorer does to an image before its network: named, hashable, and differentiable
where the image is a float tensor.

Two paths. Bytes (uint8) take the protocol's own, which for most scorers is Pillow's resampling with a rounding to 8
bits after each pass. Floats in [0, 1] take the same filters as matrices, without the rounding, so that a gradient
reaches the image; `evaluate.scorers.path_gap` measures what that makes of a score.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

#: What a network takes: `[B, ...]`, or one by one where images are of several sizes.
Prepared = Tensor | Sequence[Any]


class Prepare(Protocol):
    """What a scorer does to images; equal ones do the same, so they have a hash."""

    def __call__(self, images: Tensor | Sequence[Tensor], /) -> Prepared:
        """Images `[B, 3, H, W]`, or a list of `[3, H, W]` of any sizes. Raises ValueError for another type or shape."""

    def __hash__(self) -> int: ...


#: Channel statistics of OpenAI's CLIP, which BLIP, LAION's CLIPs and all scorers built on them took over.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _bicubic(x: Tensor) -> Tensor:
    """Keys' cubic with a = -0.5, support 2."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _lanczos(x: Tensor) -> Tensor:
    """Sinc windowed by a sinc, support 3."""
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), torch.zeros_like(x))


FILTERS: dict[str, Callable[[Tensor], Tensor]] = {"bicubic": _bicubic, "lanczos": _lanczos}


@lru_cache(maxsize=32)
def resampling_matrix(before: int, after: int, name: str) -> Tensor:
    """`[after, before]`, float64: how Pillow weighs `before` pixels into `after`. Each row sums to 1.

    When shrinking, the filter is stretched by the scale, which is what keeps frequencies from folding (antialiasing).
    """
    scale = before / after
    centres = (torch.arange(after, dtype=torch.float64) + 0.5) * scale
    pixels = torch.arange(before, dtype=torch.float64) + 0.5
    weights = FILTERS[name]((pixels - centres[:, None]) / max(scale, 1.0))
    return weights / weights.sum(1, keepdim=True)


def resample_bytes(images: Tensor, size: tuple[int, int], name: str) -> Tensor:
    """Pillow's own resampling of uint8 `[B, 3, H, W]`, on the CPU."""
    from PIL import Image

    method = Image.Resampling[name.upper()]
    rows = [
        np.asarray(Image.fromarray(image).resize((size[1], size[0]), method))
        for image in images.permute(0, 2, 3, 1).cpu().contiguous().numpy()
    ]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).to(images.device)


def resample_floats(images: Tensor, size: tuple[int, int], name: str) -> Tensor:
    """The same for floats: columns, then rows, each clamped to [0, 1] as bytes would be, but not rounded."""
    rows, columns = (
        resampling_matrix(before, after, name).to(images) for before, after in zip(images.shape[-2:], size, strict=True)
    )
    return (rows @ (images @ columns.T).clamp(0, 1)).clamp(0, 1)


def check_images(images: Tensor) -> None:
    """Raise ValueError for what is no batch of images `[B, 3, H, W]`, uint8 in 0..255 or float in [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images must be of shape [B, 3, H, W], got {tuple(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images must be uint8 in 0..255 or float in [0, 1], got {images.dtype}")


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`(x - mean) / std` of images `[B, 3, H, W]`, channel by channel, x in [0, 1]."""
    if images.dtype == torch.uint8:
        images = images.float() / 255
    centre, scale = (images.new_tensor(each)[:, None, None] for each in (mean, std))
    return (images - centre) / scale


@dataclass(frozen=True)
class AsTheyAre:
    """Images one by one, each `[3, H, W]` in its own size and type: for networks that see to sizes themselves."""

    def __call__(self, images: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Raises ValueError for what is no image."""
        listed = list(images)
        for image in listed:
            check_images(image[None])
        return listed


@dataclass(frozen=True, kw_only=True)
class Resize:
    """One change of size.

    fit: `shortest`: the shorter edge becomes `size`, then the centre square is cut out; `longest`: the longer edge
    becomes
        `size`, then both sides are padded with 0; `square`: the centre square is cut out, then resized to `size`;
        `squash`: both edges become `size`, whatever their proportions; `framed`: both sides are padded with `fill` to a
        square, which is then resized to `size`.
    fill: red, green and blue, 0 to 255, of what `framed` pads with.
    odd: where a square goes that cannot be centred by half a pixel: `round` to the even neighbour, as torchvision does,
    or
        `floor`, as transformers does.
    """

    size: int
    fit: Literal["shortest", "longest", "square", "squash", "framed"]
    filter: Literal["bicubic", "lanczos"] = "bicubic"
    odd: Literal["round", "floor"] = "round"
    fill: tuple[int, int, int] = (0, 0, 0)

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resampling, before the cut or the padding."""
        if self.fit in ("square", "squash", "framed"):
            return self.size, self.size
        if self.fit == "longest":
            scale = self.size / max(height, width)
            return round(height * scale), round(width * scale)
        short = min(height, width)
        return int(self.size * height / short), int(self.size * width / short)

    def cut(self, images: Tensor, size: int) -> Tensor:
        """The centre square of edge `size`."""
        top, left = (self._half(edge - size) for edge in images.shape[-2:])
        return images[..., top : top + size, left : left + size]

    def _half(self, surplus: int) -> int:
        return surplus // 2 if self.odd == "floor" else round(surplus / 2)

    def pad(self, images: Tensor) -> Tensor:
        """Black around the image up to a square; of an odd number of pixels the greater half goes right and below."""
        tall, wide = (self.size - edge for edge in images.shape[-2:])
        return F.pad(images, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))

    def frame(self, images: Tensor) -> Tensor:
        """`fill` around the image up to a square; of an odd number of pixels the greater half goes right and below."""
        height, width = images.shape[-2:]
        if height == width:
            return images
        edge = max(height, width)
        top, left = (edge - height) // 2, (edge - width) // 2
        colour = images.new_tensor(self.fill) / (1 if images.dtype == torch.uint8 else 255)
        square = colour.to(images.dtype)[:, None, None].repeat(len(images), 1, edge, edge)
        square[..., top : top + height, left : left + width] = images
        return square


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Images to what a network takes. Scorers whose `Preprocess` are equal share its output.

    resize: what is done in turn; empty where images must come in the network's size. library: `pillow` resamples bytes
    as Pillow does; `torch` resamples after the division by 255, as torchvision does a tensor. antialias: only for
    `torch`; Pillow always does. mean, std: of a channel in [0, 1]; the output is `(x - mean) / std`.
    """

    size: int
    resize: tuple[Resize, ...] = ()
    library: Literal["pillow", "torch"] = "pillow"
    antialias: bool = True
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __call__(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Images `[B, 3, H, W]`, or a list of `[3, H, W]` of any sizes, to `[B, 3, size,
        size]`; float64 stays, else float32.

        uint8 in 0..255, or float in [0, 1]. Raises ValueError for another type or shape.
        """
        if len(images) == 0:
            raise ValueError("no images to prepare; give at least one")
        if not isinstance(images, Tensor):
            return torch.cat([self(image[None]) for image in images])
        check_images(images)
        batch = images if images.dtype in (torch.uint8, torch.float64) else images.float()
        if self.library == "torch" and batch.dtype == torch.uint8:
            batch = batch.float() / 255
        for step in self.resize:
            batch = self._step(step, batch)
        if batch.shape[-2:] != (self.size, self.size):
            raise ValueError(
                f"images must be of 3 x {self.size} x {self.size}, got {tuple(batch.shape[1:])}; resize them"
            )
        return normalise(batch, self.mean, self.std)

    def _step(self, step: Resize, images: Tensor) -> Tensor:
        if step.fit == "square":
            images = step.cut(images, min(images.shape[-2:]))
        if step.fit == "framed":
            images = step.frame(images)
        height, width = images.shape[-2:]
        target = step.target(height, width)
        if 0 in target:
            raise ValueError(f"an image of {width} x {height} has no pixels left at {step.size}; crop it first")
        if target != (height, width):
            images = self._resample(images, target, step.filter)
        if step.fit == "shortest":
            images = step.cut(images, step.size)
        return step.pad(images) if step.fit == "longest" else images

    def _resample(self, images: Tensor, size: tuple[int, int], name: str) -> Tensor:
        if self.library == "torch":
            return F.interpolate(images, size, mode=name, antialias=self.antialias)
        return (resample_bytes if images.dtype == torch.uint8 else resample_floats)(images, size, name)


#: torchvision's transform of OpenAI's CLIP at 224: Aesthetic and ImageReward.
CLIP_224 = Preprocess(size=224, resize=(Resize(size=224, fit="shortest"),))
#: transformers' CLIPImageProcessor with Pillow: PickScore and torchmetrics' CLIPScore.
PROCESSOR_224 = Preprocess(size=224, resize=(Resize(size=224, fit="shortest", odd="floor"),))


@dataclass(frozen=True, kw_only=True)
class SmartResize:
    """Images one by one, each in its own proportions, resized as Pillow does to whole patches: what the vision-language
    models of Qwen call smart_resize.

    factor: both edges become multiples of it, in pixels. min_pixels, max_pixels: an area outside of these is brought
    to the nearer one before the edges are rounded, inwards. mean, std: as in `Preprocess`.
    """

    factor: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resampling. Raises ValueError where one is over 200 times the other."""
        if max(height, width) > 200 * min(height, width):
            raise ValueError(f"an image of {width} x {height} is over 200 times as long as it is wide; crop it first")
        rows, columns = (max(1, round(edge / self.factor)) for edge in (height, width))
        area = rows * columns * self.factor**2
        if area > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            rows, columns = (math.floor(edge / shrink / self.factor) for edge in (height, width))
        elif area < self.min_pixels:
            stretch = math.sqrt(self.min_pixels / (height * width))
            rows, columns = (math.ceil(edge * stretch / self.factor) for edge in (height, width))
        return rows * self.factor, columns * self.factor

    def __call__(self, images: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Images `[B, 3, H, W]`, or a list of `[3, H, W]` of any sizes, uint8 in 0..255 or float in [0, 1], to
        `[3, h, w]` each; float64 stays, else float32. Raises ValueError for another type or shape.
        """
        return [self._one(image[None])[0] for image in images]

    def _one(self, image: Tensor) -> Tensor:
        check_images(image)
        image = image if image.dtype in (torch.uint8, torch.float64) else image.float()
        before, after = (image.shape[-2], image.shape[-1]), self.target(image.shape[-2], image.shape[-1])
        if after != before:
            image = (resample_bytes if image.dtype == torch.uint8 else resample_floats)(image, after, "bicubic")
        return normalise(image, self.mean, self.std)

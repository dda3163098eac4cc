"""Features of images, of which distribution metrics are made: one file here is one network under one preparation.

A file's `load` gives an `Extractor`, the same one to all who ask for the same while one of them holds it. Metrics of
one run that are given their images as a `Batch` have each image go through a network once, however many they are.
"""

import functools
import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from evaluate import environment
from evaluate.images import as_bytes

T = TypeVar("T")
Images = Tensor | Sequence[Tensor]  # [B, 3, H, W], or images [3, H, W] of any sizes: uint8, or float in [0, 1]

#: Images that go through a large network at once.
BATCH = 64


class Extractor:
    """Images -> features `[B, D]`, on the CPU, without a graph.

    weights_sha256: of the network's file. made_by: all else that the features depend on, as JSON can hold it.
    """

    def __init__(
        self, compute: Callable[[Images], Tensor], *, weights_sha256: str, made_by: Mapping[str, Any] | None = None
    ) -> None:
        self._compute, self.weights_sha256 = compute, weights_sha256
        # Features of a reference are kept, and must not outlive what made them.
        code = environment.versions("onestep-align", "torch", "torchvision", "transformers", "pillow")
        self.made_by = {**(made_by or {}), "weights": weights_sha256, "versions": code}
        self._latest: dict[str, tuple[Hashable, Any]] = {}

    def __call__(self, images: Images) -> Tensor:
        """Features of images; of a `Batch`, what was computed before."""
        if not isinstance(images, Batch):
            return self._features(images)
        if self not in images.features:
            images.features[self] = self._features(images)
        return images.features[self]

    @torch.no_grad()
    def _features(self, images: Images) -> Tensor:
        return self._compute(images).cpu()

    @functools.cached_property
    def width(self) -> int:
        """D."""
        return self(torch.zeros(1, 3, 299, 299, dtype=torch.uint8)).shape[1]

    def latest(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, kept until another `key` of this kind is asked for: metrics share their reference so."""
        if self._latest.get(kind, (None, None))[0] != key:
            self._latest[kind] = key, make()
        kept: T = self._latest[kind][1]
        return kept


class Batch(list[Tensor]):
    """Images of one batch, and what was made of them: by each extractor, and digests of their pixels."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        super().__init__(images)
        self.features: dict[Extractor, Tensor] = {}

    @functools.cached_property
    def digests(self) -> tuple[bytes, ...]:
        """Of each image as bytes."""
        return tuple(hashlib.sha256(as_bytes(image).cpu().numpy().tobytes()).digest() for image in self)


_loaded: WeakValueDictionary[tuple[Hashable, ...], Extractor] = WeakValueDictionary()


def shared(load: Callable[..., Extractor]) -> Callable[..., Extractor]:
    """`load`, which gives again what somebody still holds; its arguments are a device, a path, and what is hashable."""

    @functools.wraps(load)
    def once(device: Any, weights: str | None, *rest: Hashable) -> Extractor:
        key = (load.__module__, str(device), weights, *rest)
        extractor = _loaded.get(key)
        if extractor is None:
            extractor = _loaded[key] = load(device, weights, *rest)
        return extractor

    return once

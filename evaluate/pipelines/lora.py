"""LoRA: products of low rank that are added to a network's weights (Hu et al. 2021), read by diffusers and peft."""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from evaluate import weights
from prompts.io.errors import UserError


def is_lora(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are a LoRA's tensors rather than a whole network's."""
    return any(".lora" in key for key in tensors)


def add(pipeline: Any, name: str, tensors: Mapping[str, Tensor], source: object, *, network: Any = None) -> None:
    """Add a LoRA to the weights of a pipeline's network `name`, and to text encoders' where it has any.

    network: one of the same architecture, which gets it alone, in place of the pipeline's. Spellings are those that
    diffusers knows for the pipeline: its own, peft's, kohya's. Raises UserError, and changes nothing, where a key has
    no place.
    """
    if network is not None:
        pipeline = copy.copy(pipeline)
        setattr(pipeline, name, network)
    target = getattr(pipeline, name)
    parts = [target] if network is not None else [p for p in pipeline.components.values() if isinstance(p, nn.Module)]
    loader = pipeline if hasattr(pipeline, "load_lora_weights") else _Bare(target, name)
    given, kind = sum(not key.endswith(".alpha") for key in tensors), type(target).__name__
    remedy = "this is a LoRA for another architecture"
    try:
        with _quiet():
            loader.load_lora_weights(_named(tensors, target, name))
        placed = sum("lora_" in key for part in parts for key in part.state_dict())
        if placed == given:
            loader.fuse_lora()
    except weights.DAMAGE as error:
        raise UserError(f"{source}: does not fit {kind} ({weights.reason(error)}); {remedy}") from None
    finally:
        loader.unload_lora_weights()
    if placed != given:
        raise UserError(f"{source}: {placed} of {given} matrices find a place in {kind}; {remedy}")


class _Bare:
    """What diffusers' pipelines do with a LoRA, for a network whose pipeline knows none, as PixArt's."""

    def __init__(self, network: Any, name: str) -> None:
        from diffusers.loaders import PeftAdapterMixin

        self.network, self.name, self.kind = network, name, type(network)
        network.__class__ = type(self.kind.__name__, (self.kind, PeftAdapterMixin), {})

    def load_lora_weights(self, tensors: dict[str, Tensor]) -> None:
        self.network.load_lora_adapter(tensors, prefix=self.name)

    def fuse_lora(self) -> None:
        self.network.fuse_lora()

    def unload_lora_weights(self) -> None:
        self.network.unload_lora()
        self.network.__class__ = self.kind


def _named(tensors: Mapping[str, Tensor], network: nn.Module, name: str) -> dict[str, Tensor]:
    """Tensors under the network's name, which files of peft alone leave out, and without the adapter's.

    Names of kohya's scripts are left to diffusers, which puts the network's before them where it is missing.
    """
    if any(key.endswith((".alpha", ".lora_down.weight")) for key in tensors):
        return dict(tensors)
    short = {key: key.removeprefix("base_model.model.").replace(".default.weight", ".weight") for key in tensors}
    own = dict(network.named_children())
    return {f"{name}.{key}" if key.partition(".")[0] in own else key: tensors[given] for given, key in short.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Within: diffusers does not warn of keys without a place, which are counted."""
    logger = logging.getLogger("diffusers.loaders")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

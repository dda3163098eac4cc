"""What is known of an architecture, known once: for drawing, training and sampling alike.

A file here, or in an extension's `families/`, is a family where it has `family`, an instance of a `Family`. Nothing
else in the code knows one. The tests compare it with stock diffusers where `tests/tiny_families.py` makes a tiny
pipeline of it, and else skip it by name.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from evaluate.diffusion import FlowSchedule, NoiseLevels, Schedule, is_flow
from prompts import extensions
from prompts.io.errors import UserError

__path__ = extensions.extended(__path__, "families")

#: The ends of the names of a UNet's layers that have most of its weights.
UNET_LAYERS = (
    "to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "proj_in", "proj_out", "net.0.proj", "net.2",
)  # fmt: skip


class Family:
    """An architecture. What most have in common stands here, and a family says what is otherwise.

    pipelines: the classes of diffusers that it is drawn with. network: the network's name among their parts. arguments:
    what their call is told so that it conditions the network as `encode` does. tiny_vae: a tiny autoencoder of the same
    latents on the hub. lora_targets: the ends of the names of the layers that a LoRA is put on. token: pixels along
    each side of what counts as one token where noise levels depend on the image's size. flow: whether its networks are
    flows, whatever a scheduler says. patch: latents along each side of what the network takes as one; sizes are
    multiples of it. language_models: the names of text encoders of billions of parameters, which are kept in the
    precision of a run. texts_at_once: prompts that are encoded together; a language model's rows are long.
    spare_layers: whether some of a network's layers lead nowhere, and have no gradient, which several processes that
    train it together have to be told.
    """

    pipelines: tuple[str, ...] = ()
    network: str = "transformer"
    arguments: Mapping[str, Any] = MappingProxyType({})
    tiny_vae: str | None = None
    lora_targets: tuple[str, ...] = ()
    token: int = 16
    flow: bool = False
    patch: int = 1
    language_models: tuple[str, ...] = ()
    texts_at_once: int = 128
    spare_layers: bool = False

    def latent_shape(self, pipeline: Any, height: int, width: int) -> tuple[int, ...]:
        """Of the noise of one image of height x width pixels: channels, and an area of the image's proportions."""
        scale: int = pipeline.vae_scale_factor
        return getattr(pipeline, self.network).config.in_channels, height // scale, width // scale

    def size(self, pipeline: Any) -> tuple[int, int]:
        """Height and width in pixels that the network was made for."""
        edge = getattr(pipeline, "default_sample_size", None) or getattr(pipeline, self.network).config.sample_size
        return (edge * pipeline.vae_scale_factor,) * 2

    def noise_levels(self, pipeline: Any, height: int, width: int) -> NoiseLevels:
        """The noise levels that the pipeline's scheduler says the network was trained at, for images of this size."""
        if not is_flow(pipeline.scheduler):
            return Schedule.from_scheduler(pipeline.scheduler)
        return FlowSchedule.from_scheduler(pipeline.scheduler, tokens=height // self.token * (width // self.token))

    def pack(self, latents: Tensor) -> Tensor:
        """Latents `[B, *latent_shape]` as the pipeline's call takes them."""
        return latents

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Images `[B, 3, height, width]`, in [-1, 1] where nothing exceeds it, of latents `[B, *latent_shape]`."""
        spread, mean = (getattr(vae.config, f"latents_{of}", None) for of in ("std", "mean"))
        if spread is not None and mean is not None:  # of each channel, as SDXL's descendants may have them
            spread, mean = (latents.new_tensor(values).reshape(-1, 1, 1) for values in (spread, mean))
            scaled = latents * spread / vae.config.scaling_factor + mean
        else:
            scaled = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        images: Tensor = vae.decode(scaled, return_dict=False)[0]
        return images

    def guided(self, scale: float) -> dict[str, Any]:
        """Arguments of the pipeline's call for classifier-free guidance of this scale, 1 being none."""
        return {"guidance_scale": scale}

    def encode(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Everything the network is told of a prompt: tensors with a row `[B, ...]` for each, which depends on its
        prompt alone. `mask`, where there is one, is 1 where the prompt has a token, and 0 behind.
        """
        raise UserError(f"{type(pipeline).__name__}: can be evaluated but not trained yet; choose another reference")

    def null(self, pipeline: Any) -> dict[str, Tensor]:
        """The same for the null prompt, `[1, ...]`."""
        return self.encode(pipeline, [""])

    def call(self, network: nn.Module, x: Tensor, t: Tensor, cond: dict[str, Tensor], pixels: int) -> Tensor:
        """The network's raw output for latents x `[B, C, H, W]`, scaled as it expects them, timesteps t `[B]` between
        0 and 1000, and rows of `encode`; of the shape of x. A flow points from data to noise.

        What follows from the latents alone, such as the image's size, is found here; pixels: of the image along each
        side of a latent's. `cond["guidance"]`, `[B]`, is the scale that a network of embedded guidance is told.
        """
        raise NotImplementedError


class Packed(Family):
    """One whose pipeline takes rows of two by two latents."""

    patch = 2

    def latent_shape(self, pipeline: Any, height: int, width: int) -> tuple[int, ...]:
        """A quarter of the network's channels, which are those of two by two latents."""
        channels, *area = super().latent_shape(pipeline, height, width)
        return channels // 4, *area

    def pack(self, latents: Tensor) -> Tensor:
        """`[B, C, H, W]` to a row `[B, H/2 W/2, 4 C]` for every two by two."""
        return nn.functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)

    def told(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x, and t of 1000 as a part of 1, in the precision that the network computes in. Pipelines round the time to
        it, and training has to tell the network what drawing will.
        """
        kind = x.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return x.to(narrow), t.to(narrow) / 1000

    def unpack(self, rows: Tensor, height: int, width: int) -> Tensor:
        """Back to `[B, C, height, width]`."""
        area = (height // 2, width // 2)
        return nn.functional.pixel_shuffle(rows.transpose(1, 2).unflatten(2, area), 2)


def names() -> list[str]:
    """The families there are."""
    return extensions.names(__name__, "family")


def load(name: str) -> Family:
    """The family `name`; UserError where there is none."""
    family: Family = extensions.member(__name__, name, "family", what="family").family
    return family


def of(pipeline: Any) -> Family:
    """The family of a loaded pipeline, by its class or one that it is derived from;
    UserError where none draws with it.
    """
    return _of(type(pipeline), type(pipeline).__name__)


def _of(kind: type, named: str) -> Family:
    for name in names():
        if draws_with(load(name), kind):
            return load(name)
    raise UserError(f"{named}: no family draws with it; add one to evaluate/families, or use another model")


def draws_with(family: Family, pipeline: type) -> bool:
    """Whether the class of a pipeline, or one that it is derived from, is among the family's."""
    return bool({kind.__name__ for kind in pipeline.__mro__} & set(family.pipelines))


def check_class(index: Path, source: str) -> None:
    """Raise UserError where no family draws with the pipeline of a `model_index.json`; of a class that diffusers does
    not have, nothing is known.
    """
    import diffusers

    try:
        name = str(json.loads(index.read_text(encoding="utf-8")).get("_class_name"))
    except (OSError, ValueError, AttributeError):
        return  # whoever loads it says so
    if isinstance(kind := getattr(diffusers, name, None), type):
        _of(kind, f"{source}: {name}")


def check(name: str, pipeline: Any, source: str) -> None:
    """Raise UserError where the family `name` draws with other pipelines than that of `source`, or with another kind of
    scheduler.
    """
    family, kind = load(name), type(pipeline).__name__
    if family.pipelines and not draws_with(family, type(pipeline)):
        fitting = [other for other in names() if draws_with(load(other), type(pipeline))]
        remedy = f"set family to {fitting[0]}" if fitting else f"it can be one of {', '.join(family.pipelines)}"
        raise UserError(f"family = {name}: {source} is a {kind}; {remedy}")
    if family.flow and not is_flow(pipeline.scheduler):
        raise UserError(
            f"{source}: its scheduler, {type(pipeline.scheduler).__name__}, is not one of flow matching, and networks"
            f" of the family {name} are flows; put FlowMatchEulerDiscreteScheduler into its model_index.json"
        )

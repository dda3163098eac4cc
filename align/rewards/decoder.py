"""Latents to images, through a pipeline's own autoencoder or a tiny one in its place."""

from functools import partial
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from evaluate.families import Family
from evaluate.pipelines.address import hub_id, locate
from evaluate.weights import Files, RandomWeights
from prompts.io.errors import UserError


def load_tiny(source: str, files: Files) -> Any:
    """The AutoencoderTiny of a folder or a hub id, with `@REVISION` where one is pinned. Every key has to match."""
    from diffusers import AutoencoderTiny

    config, file = "config.json", "diffusion_pytorch_model.safetensors"
    where = hub_id(source)
    folder = locate(where.repository) if where else locate(source)
    if folder is None and where:
        folder = [files.fetch(where.repository, name, where.revision) for name in (file, config)][-1].parent
    if folder is None or not (folder / config).is_file():
        raise UserError(f"reward_vae = {source}: no tiny autoencoder there; name one, or leave it out")
    options = AutoencoderTiny.load_config(folder)
    if options.get("_class_name") != AutoencoderTiny.__name__:
        raise UserError(
            f"reward_vae = {source}: holds a {options.get('_class_name')}; name a tiny autoencoder, or leave it out"
        )
    vae = AutoencoderTiny.from_config(options)
    files.fill(vae, files.read(folder / file), folder / file)
    return vae


def _in_place_of(vae: Any, tiny: str, family: Family, files: Files) -> Any:
    """A tiny autoencoder that decodes the same latents. Raises UserError for one of others."""
    if type(family).decode is not Family.decode:
        raise UserError(
            f"reward_vae = {tiny}: no tiny autoencoder has latents as {type(vae).__name__}'s; leave reward_vae out"
        )
    found = load_tiny(tiny, files)
    channels, own = found.config.latent_channels, getattr(vae.config, "latent_channels", None)
    if own is not None and channels != own:
        remedy = f"; {family.tiny_vae} has as many" if family.tiny_vae else ""
        raise UserError(f"reward_vae = {tiny}: decodes latents of {channels} channels, and these have {own}{remedy}")
    return found


class Decoder:
    """Latents to images, through the pipeline's own autoencoder or a tiny one in its place."""

    def __init__(
        self,
        vae: Any,
        *,
        family: Family | None = None,
        tiny: str | None = None,
        random_weights: bool = False,
        checkpointing: bool = False,
        device: Any = None,
    ):
        if tiny is not None:
            vae = _in_place_of(vae, tiny, family or Family(), RandomWeights() if random_weights else Files())
        self.vae, self.checkpointing = vae.requires_grad_(False).eval().to(device), checkpointing
        # Of one image of 1024 x 1024 an autoencoder's layers keep over 20 GiB, the last block's alone 12.
        self.in_blocks = checkpointing and self.vae._supports_gradient_checkpointing
        if self.in_blocks:
            self.vae.enable_gradient_checkpointing()
            for module in self.vae.decoder.modules():
                if isinstance(module, ResnetBlock2D):
                    module.forward = partial(checkpoint, module.forward, use_reentrant=False)
        self.family = family or Family()

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents `[B, C, H, W]` to images `[B, 3, sH, sW]`, clamped to [0, 1] as those that are saved and scored."""
        latents = latents.to(self.vae.dtype)
        if not self.checkpointing or (self.in_blocks and len(latents) == 1):
            parts = [self._decode(latents)]
        else:  # one image at a time, since a decoder's activations are larger than a UNet's, also where none are kept
            parts = [self._recomputed(one) for one in latents.split(1)]
        return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)

    def _recomputed(self, latents: Tensor) -> Tensor:
        decoded: Tensor = checkpoint(self._decode, latents, use_reentrant=False)
        return decoded

    def _decode(self, latents: Tensor) -> Tensor:
        return self.family.decode(self.vae, latents)

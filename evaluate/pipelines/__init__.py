"""Text-to-image models as diffusers pipelines: what `address` finds, put together as its `recipe` says."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evaluate.pipelines import address, overlays
from evaluate.pipelines.address import read_recipe as read_recipe
from evaluate.pipelines.overlays import Overlay
from evaluate.pipelines.recipe import Scheduler, Weights
from prompts.io import hub
from prompts.io.errors import UserError
from prompts.io.files import text_sha256


def quiet() -> None:
    """Keep diffusers and transformers from drawing progress bars of their own, and from advice to developers."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def load(
    model: str,
    *,
    dtype: torch.dtype = torch.float32,
    dtypes: Mapping[str, torch.dtype] | None = None,
    without: str = "",
) -> Any:
    """The model as a diffusers pipeline, every weight matched by name. Raises UserError with the remedy.

    dtypes: of parts, by name, that have another one than `dtype`. without: a part that is not wanted, and left out
    where nothing lies over it.
    """
    quiet()
    whole, *over = _overlays(model)
    pipeline = overlays.load_pipeline(whole, dtype, dtypes, without="" if over else without)
    for overlay in over:
        overlays.OVERLAYS[overlay.kind](pipeline, overlay)
    set_scheduler(pipeline, model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def digest(model: str) -> str:
    """Hash of everything that is loaded for a model: the names and the bytes of its files,
    and of the pipeline it leans on.
    """
    quiet()
    below = ""
    for overlay in _overlays(model):
        below = text_sha256(overlay.digest() + below)
    return below


def _overlays(model: str, revision: str | None = None, variant: str | None = None) -> list[Overlay]:
    """What a model is made of, the whole pipeline first, all of it fetched."""
    path = address.locate(model)
    if path is None:
        repo, pinned = address.split(model)
        return [overlays.pipeline_overlay(overlays.snapshot(repo, pinned or revision, variant), variant)]
    recipe = address.runnable(model)
    if revision:
        raise UserError(
            f"{path}: a local model has no revision {revision}; take the field 'revision' out of the recipe"
        )
    folder = path if path.is_dir() else path.parent
    if recipe.pipeline:
        parts = _overlays(address.beside(folder, recipe.pipeline), recipe.revision, recipe.variant)
    elif path.is_dir():
        parts = [overlays.pipeline_overlay(folder, variant or recipe.variant)]
    else:
        raise UserError(f"{path}: no field 'pipeline'; name the folder or the hub id that it is a recipe for")
    if isinstance(recipe.unet, str):
        parts.append(overlays.network_overlay(folder, recipe.unet))
    for kind, source in (("network", recipe.unet), ("delta", recipe.delta), ("lora", recipe.lora)):
        if isinstance(source, Weights):
            file = _file(source, folder)
            parts.append(Overlay(kind, file.parent, (file,)))
    return parts


def _file(source: Weights, folder: Path) -> Path:
    if source.repo is None:
        return hub.fetch(str(folder), source.file, "", local=str(folder / source.file))
    return hub.fetch(source.repo, source.file, source.revision or "main")


def scheduler_of(model: str) -> tuple[Scheduler, Path | None] | None:
    """The scheduler that the model's recipe asks for, or the recipe it leans on, and where that stands."""
    path, recipe = address.locate(model), read_recipe(model)
    if recipe.scheduler:
        return recipe.scheduler, path
    if path and path.is_dir() and (path / "scheduler" / "scheduler_config.json").is_file():
        return None  # a network that brings its own
    if path and recipe.pipeline:
        below = address.beside(path if path.is_dir() else path.parent, recipe.pipeline)
        return scheduler_of(below) if address.locate(below) else None
    return None


def set_scheduler(pipeline: Any, model: str) -> None:
    """Give the pipeline the scheduler of the recipe, or of the recipe it leans on."""
    if found := scheduler_of(model):
        scheduler, path = found
        overlays.set_scheduler(pipeline, scheduler.name, pipeline.scheduler.config, path, **scheduler.options)


def size(model: str) -> tuple[int, int] | None:
    """Height and width in pixels of what a model draws, from its recipe or its configs; None where they do not say.

    Nothing is fetched where the recipe says it, else what `load` would fetch.
    """
    recipe = read_recipe(model)
    if recipe.height and recipe.width:
        return recipe.height, recipe.width
    configs = _configs(_overlays(model))
    network, vae = configs.get("unet") or configs.get("transformer") or {}, configs.get("vae") or {}
    edge, blocks = network.get("sample_size"), vae.get("block_out_channels")
    if not isinstance(edge, int) or not blocks:
        return None
    edge *= 2 ** (len(blocks) - 1)  # every block of the VAE but its last halves the image
    return recipe.height or edge, recipe.width or edge


def _configs(parts: Sequence[Overlay]) -> dict[str, dict[str, Any]]:
    """The config of each part, by the part's name; that of a later overlay in place of an earlier one's."""
    files = [path for overlay in parts for path in overlay.files if path.name == "config.json"]
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in files}

"""Pipelines of published architectures with random weights, made from configs and tokenizers alone."""

import json
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluate import layouts, pipelines, weights
from evaluate.pipelines import address, overlays
from prompts.io import hub
from prompts.io.errors import UserError, first_line


def random_pipeline(model: str, *, dtype: torch.dtype, device: str) -> Any:
    """The model's architecture with weights initialised at random (`weights.randomise`), from
    its configs and tokenizers alone, or where they cannot be fetched from those of `evaluate.layouts`.

    Raises UserError where a config is missing.
    """
    pipelines.quiet()
    with tempfile.TemporaryDirectory() as made:
        pipeline = _assembled(_configs(model, Path(made)), dtype=dtype, device=device)
    pipelines.set_scheduler(pipeline, model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _assembled(folder: Path, *, dtype: torch.dtype, device: str) -> Any:
    """The pipeline that the configs of `folder` describe."""
    from diffusers import DiffusionPipeline

    overlays.check_parts(folder)
    try:
        index: dict[str, Any] = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        torch.manual_seed(0)
        parts: dict[str, Any] = {}
        for name, entry in index.items():
            if isinstance(entry, list) and entry[0] is not None:
                kind = overlays.part_class(*entry)
                if kind is None:  # safety checkers and what else a pipeline brings along for itself
                    parts[name] = None
                elif issubclass(kind, nn.Module):
                    parts[name] = (
                        weights.randomise(_build(kind, folder / name, device))
                        .to(device, dtype)
                        .eval()
                        .requires_grad_(False)
                    )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the safety checker that is left out
            return DiffusionPipeline.from_pretrained(folder, **parts)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{folder}: cannot be built from its configs ({first_line(error)}); fetch its .json and tokenizer files"
            " again"
        ) from None


def _configs(model: str, made: Path, revision: str | None = None) -> Path:
    """The folder with a model's configs, that of the pipeline it leans on where it has one. made: where layouts go."""
    path, recipe = address.locate(model), address.runnable(model)
    if path is None:
        repo, pinned = address.split(model)
        allow = [f"*{suffix}" for suffix in overlays.TEXTS]
        fetch = partial(hub.fetch_folder, repo, pinned or revision or "main", allow=allow, ignore=["*.index.json"])
        return layouts.instead(repo, fetch, made)
    folder = path if path.is_dir() else path.parent
    return _configs(address.beside(folder, recipe.pipeline), made, recipe.revision) if recipe.pipeline else folder


def _build(kind: Any, folder: Path, device: str) -> nn.Module:
    """A network of class `kind` as `folder`'s config describes it."""
    with torch.device(device):
        module: nn.Module
        if hasattr(kind, "config_class"):  # of transformers
            module = kind(kind.config_class.from_pretrained(folder))
        else:
            module = kind.from_config(kind.load_config(folder))
    return module

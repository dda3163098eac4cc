"""A training run's result: a diffusers pipeline folder that stock diffusers loads, or its LoRA
alone, with a recipe and a card.
"""

import json
import os
import shutil
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from align.config.train import TrainConfig
from align.export import card, push
from align.export.lora import lora_recipe
from align.networks.initial import LORA
from align.run_folder import read_run
from evaluate import families, pipelines, weights
from evaluate.pipelines import address, overlays
from evaluate.pipelines.recipe import Recipe
from evaluate.precision import dtype_of
from evaluate.results.csv_io import read_csv
from prompts.io.errors import UserError
from prompts.io.files import replace_folder, write_json
from prompts.io.validate import validate
from prompts.io.yaml import read_yaml


def export(
    config: TrainConfig,
    pipeline: Any,
    scheduler: Any,
    recipe: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    output: Path,
    *,
    adapter: Mapping[str, Tensor],
    run_metadata: Mapping[str, Any],
) -> Path:
    """Write `output/checkpoint`, whole or not at all: the pipeline with `weights` as its network, recipe.yaml and
    README.md; and run.json.

    scheduler, recipe: of the generator. adapter: the LoRA whose sum with the network that training started from
    `weights` are; empty where there is none. run_metadata: `align.export.card`'s.
    """
    target, draft = output / "checkpoint", output / ".checkpoint.partial"
    name = families.load(config.family).network
    network = getattr(pipeline, name)
    with torch.device("meta"):  # of tens of gigabytes a second copy is not to be had
        fresh = type(network).from_config(network.config)
    fresh.load_state_dict({key: value.cpu().to(fresh.dtype) for key, value in weights.items()}, assign=True)
    components = {**pipeline.components, name: fresh, "scheduler": scheduler}
    whole = type(pipeline)(**components, **_settings(pipeline))
    run = read_run(output) | dict(run_metadata)
    try:
        shutil.rmtree(draft, ignore_errors=True)
        whole.save_pretrained(draft)
        forget_paths(draft)
        if adapter:
            save_tensors({f"{name}.{key}": value for key, value in adapter.items()}, draft / LORA)
        write_recipe(draft, Recipe.model_validate(recipe))
        text = card.card(config, run, Recipe.model_validate(recipe), name=output.resolve().name, place=target.name)
        card.write(draft, text)
        replace_folder(draft, target)
        write_json(output / "run.json", run)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(
            f"{target}: cannot be written ({error.strerror or error}); free some space, then --resume"
        ) from None
    return target


def _settings(pipeline: Any) -> dict[str, Any]:
    """What a pipeline is told besides its parts, such as that it was distilled; it has no safety checker any more."""
    names = signature(type(pipeline).__init__).parameters.keys() - pipeline.components.keys()
    settings = {name: pipeline.config[name] for name in names if name in pipeline.config}
    return settings | ({"requires_safety_checker": False} if "safety_checker" in pipeline.components else {})


def describe(config: TrainConfig, output: Path) -> None:
    """Write the card of `output/checkpoint` again, with the scores that were measured since."""
    folder, run = output / "checkpoint", read_run(output)
    recipe, name = pipelines.read_recipe(str(folder)), output.resolve().name
    card.write(
        folder, card.card(config, run, recipe, name=name, place=folder.name, comparison=_comparison(output, run))
    )


def _comparison(output: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `align.training.compare` found of this very checkpoint; None where it has not looked."""
    path = output / "comparison.json"
    comparison: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return comparison if comparison.get("step") == run["step"] else None


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a file of weights as diffusers does."""
    save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, path, metadata={"format": "pt"})


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Put a recipe into a model's folder."""
    text = yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True, exclude_none=True), sort_keys=False)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")


def forget_paths(folder: Path) -> None:
    """Take out of diffusers' configs where on this machine their weights came from."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy(
    source: Path,
    folder: Path,
    *,
    dtype: str | None,
    pipeline: str | None,
    lora: bool,
    scores: Path | None,
    push_to: str | None,
) -> str:
    """Make `folder` out of the checkpoint `source`, whole or not at all: all of it, its network alone (`pipeline` has
    all else), or its `lora` alone. Returns its precision.

    dtype: by default the recipe's, or bf16 for flow matching, or fp16. scores: a leaderboard, whose rows of this model
    come into the card. push_to: the repository that it is made for.
    """
    source = source.resolve()
    recipe, run = pipelines.read_recipe(str(source)), read_run(source.parent)
    kept = dtype or recipe.dtype or ("bf16" if recipe.sigmas else "fp16")
    precision, path = dtype_of(kept), source.parent / "config.yaml"
    config = validate(TrainConfig, read_yaml(path), str(path)) if run.get("step") is not None else None
    if scores and config is None:
        raise UserError(f"--scores {scores}: {source} is not of a run of 'align train', whose card it belongs in")
    draft = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        kind, recipe = _fill(
            draft, source, recipe, run, config, precision=precision, pipeline=pipeline, lora=lora, push_to=push_to
        )
        if config is not None:
            # A LoRA over rounded weights is laid over whole ones: what was measured of the checkpoint is not of it.
            other = kind == "lora" and config.lora is not None and config.lora.base is not None
            rows = _rows(scores, *([] if other else [source]), draft) if scores else []
            place, name = push_to or folder.name, push_to.partition("/")[2] if push_to else folder.resolve().name
            found = None if other else _comparison(source.parent, run)
            text = card.card(
                config, run, recipe, name=name, place=place, kind=kind, dtype=precision, comparison=found, rows=rows
            )
            card.write(draft, text)
        elif (source / card.README).is_file():  # not a run of `align train`, or one of an older version
            shutil.copy(source / card.README, draft)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return kept


def _fill(
    folder: Path,
    source: Path,
    recipe: Recipe,
    run: Mapping[str, Any],
    config: TrainConfig | None,
    *,
    precision: torch.dtype,
    pipeline: str | None,
    lora: bool,
    push_to: str | None,
) -> tuple[card.Kind, Recipe]:
    """Write all but the card; returns what it is, and how it is drawn with."""
    kind: card.Kind = "pipeline"
    if lora:
        if config is None or not (source / LORA).is_file():
            raise UserError(f"{source}: no LoRA of a run there; train with 'lora' in its config, or leave out --lora")
        tensors = {key: value.to(precision) for key, value in weights.read(source / LORA).items()}
        kind, recipe = "lora", lora_recipe(config, run, recipe, families.load(config.family).network, folder)
        _check_push(recipe, push_to)
        folder.mkdir(parents=True)
        save_tensors(tensors, folder / LORA)
    elif pipeline is None:
        pipelines.load(str(source), dtype=precision).save_pretrained(folder)
    else:
        if not Path(pipeline).exists():
            address.locate(address.split(pipeline)[0])  # for its errors
        loaded = pipelines.load(str(source), dtype=precision)
        name = overlays.network_name(loaded)
        rest = os.path.relpath(pipeline, folder.resolve()) if Path(pipeline).exists() else pipeline
        kind, recipe = "network", recipe.model_copy(update={"pipeline": rest, "unet": name})
        _check_push(recipe, push_to)
        getattr(loaded, name).save_pretrained(folder / name)
        loaded.scheduler.save_pretrained(folder / "scheduler")
    forget_paths(folder)
    write_recipe(folder, recipe)
    return kind, recipe


def _check_push(recipe: Recipe, push_to: str | None) -> None:
    if push_to:
        push.check_recipe(recipe, push_to)


def _rows(scores: Path, *models: Path) -> list[dict[str, str]]:
    """The leaderboard's rows of any of these models, told by the hash of what is loaded."""
    hashes = {pipelines.digest(str(model)) for model in models}
    rows = [row for row in read_csv(scores) if row.get("model_sha256") in hashes]
    if not rows:
        raise UserError(f"{scores}: no row of this model; make one with 'evaluate run --model {models[0]}'")
    return rows

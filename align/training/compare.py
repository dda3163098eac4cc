"""What an alignment did: the result beside its start, on the same held-out captions and the same noise."""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from align.config.train import TrainConfig
from align.networks.initial import is_pipeline, load_into
from align.run_folder import read_run
from align.training import compare_image as comparison
from align.training.validation import compared_captions
from evaluate import families, pipelines, samplers, scorers
from evaluate.console import ProgressLog, console
from evaluate.distribution.fd_shapes import fd_shapes
from evaluate.environment import device_of
from evaluate.pipelines.recipe import Recipe
from evaluate.precision import drawn_in, dtype_of
from evaluate.runs.retry import RetryInHalves
from evaluate.stats import paired_difference, percent
from prompts.io.errors import UserError
from prompts.io.files import write_json

SEED = 10_000  # noise that no training and no watching has seen
CHUNK = 64


def beginning(config: TrainConfig, result: str) -> tuple[Any, Recipe]:
    """What training started from, and how it draws: as its own recipe says; where it has none, as the result does, or
    what is no generator of few steps, as it was asked in training. Its precision is the result's.
    """
    name, dtype = families.load(config.family).network, _dtype(pipelines.read_recipe(result))
    if config.initial is None and config.pipeline is None:
        recipe = pipelines.read_recipe(config.reference)
        recipe = recipe if recipe.model_fields_set else _asked_in_training(config)
        return pipelines.load(config.reference, dtype=dtype), recipe
    if config.initial is not None and is_pipeline(config.initial):
        recipe = pipelines.read_recipe(config.initial)
        if recipe.model_fields_set:
            return pipelines.load(config.initial, dtype=dtype), recipe
    pipeline = pipelines.load(config.pipeline or config.reference, dtype=dtype)
    network = getattr(pipeline, name)
    for source in (config.reference if config.pipeline else None, config.initial):
        if source is not None:
            load_into(pipeline, name, network, source)
    pipeline = pipelines.load(result, dtype=dtype)
    pipeline.register_modules(**{name: network})
    return pipeline, pipelines.read_recipe(result)


def _asked_in_training(config: TrainConfig) -> Recipe:
    """The reference's many steps, at the guidance and the size that it was asked at."""
    family, (height, width) = families.load(config.family), config.size or (None, None)
    guided = family.guided(config.guidance.scale)
    if config.guidance.embedded is not None:
        guided["guidance_scale"] = config.guidance.embedded
    scale, arguments = guided.pop("guidance_scale"), {**family.arguments, **guided}
    return Recipe(guidance_scale=scale, height=height, width=width, arguments=arguments)


def images_of(
    model: str,
    prompts: list[str],
    *,
    title: str,
    seed: int = SEED,
    sampler: dict[str, Any] | None = None,
    **overrides: Any,
) -> Tensor:
    """One image per prompt, `[N, 3, H, W]` in [0, 1], through stock diffusers. sampler: in place of the recipe's."""
    recipe = pipelines.read_recipe(model)
    recipe = recipe.model_copy(update={"sampler": sampler}) if sampler else recipe
    return draw(pipelines.load(model, dtype=_dtype(recipe)), recipe, prompts, title=title, seed=seed, **overrides)


def _dtype(recipe: Recipe) -> torch.dtype:
    return dtype_of(drawn_in(recipe.dtype, device_of(None)))


def draw(
    pipeline: Any,
    recipe: Recipe,
    prompts: list[str],
    *,
    title: str,
    seed: int = SEED,
    keys: Sequence[str] | None = None,
    **overrides: Any,
) -> Tensor:
    """The same with a pipeline. keys: what tells images' noise apart, by default their numbers.

    Raises UserError where one image is too large for the memory.
    """
    keys = keys or [str(i) for i in range(len(prompts))]
    pipeline = pipeline.to(device_of(None))
    sampler = samplers.make(recipe)

    def drawn_of(rows: Sequence[int]) -> list[Tensor]:
        some, theirs = [prompts[i] for i in rows], [keys[i] for i in rows]
        return list(sampler.draw(pipeline, recipe, some, seeds=[seed] * len(rows), keys=theirs, **overrides).cpu())

    in_halves = RetryInHalves(drawn_of, name=title, say=console.print)
    drawn: list[Tensor] = []
    with ProgressLog(title, len(prompts)) as progress:
        for first in range(0, len(prompts), CHUNK):
            for image, error, _ in in_halves(range(first, min(first + CHUNK, len(prompts)))):
                if image is None:
                    raise UserError(f"{title}: {error}; try with fewer or smaller images")
                drawn.append(image)
            progress(len(drawn))
    return torch.stack(drawn)


@torch.no_grad()
def score(
    before: Tensor, after: Tensor, prompts: list[str], weights: Mapping[str, str | None]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What every scorer says of start and result, by its protocol: `[N]` each.

    weights: each scorer's, None for its own.
    """
    device, scores = device_of(None), {}
    for name, path in weights.items():
        scorer = scorers.load(name, device=device, weights=path)
        a, b = (scores_of({name: scorer}, images, prompts)[name].numpy() for images in (before, after))
        scores[scorer.protocol] = (a, b)
    return scores


@torch.no_grad()
def scores_of(
    loaded: Mapping[str, scorers.Scorer], images: Tensor, prompts: list[str], *, at_once: int = CHUNK
) -> dict[str, Tensor]:
    """Every scorer's scores of images `[N, 3, H, W]`, `[N]` in float64 on the CPU under its key."""
    parts = [
        scorers.score_all(loaded, images[first : first + at_once], prompts[first : first + at_once])
        for first in range(0, len(images), at_once)
    ]
    return {name: torch.cat([part[name].double().cpu() for part in parts]) for name in loaded}


def compare(scored: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
    """A row per scorer: both means, and the paired difference with its 95 % interval and win rate."""
    return [
        {"metric": name, "start": a.mean(), "result": b.mean(), **paired_difference(a, b)._asdict()}
        for name, (a, b) in scored.items()
    ]


def final_comparison(config: TrainConfig, output: Path) -> None:
    """Print the comparison, and write `comparison.json` and `comparison.png`."""
    gc.collect()  # what trained has cycles, and is not needed any more
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    prompts = compared_captions(config)
    start, result = config.initial or config.reference, str(output / "checkpoint")
    before = draw(*beginning(config, result), prompts, title=f"drawing {start}")
    after = images_of(result, prompts, title="drawing the result")
    rewards = {scorers.resolve(reward.scorer) or reward.scorer: reward.weights for reward in config.rewards}
    watched = [scorers.resolve(name) or name for name in config.held_out.scorers]
    scored = score(before, after, prompts, rewards | {name: None for name in watched if name not in rewards})
    rows = compare(scored)

    table = Table(
        title=f"{output.name}: {len(prompts):,} held-out captions, same noise",
        caption="difference with its 95 % interval, paired",
    )
    for column in ("metric", start, output.name, "difference", "wins"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for row in rows:
        interval = f"{row['mean']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        note = " (reward)" if row["metric"] in rewards else ""
        table.add_row(
            row["metric"] + note,
            f"{row['start']:.4f}",
            f"{row['result']:.4f}",
            interval,
            percent(row["win_rate"], row["win_low"], row["win_high"]),
        )
    content: dict[str, Any] = {
        "step": read_run(output)["step"],
        "n": len(prompts),
        "seed": SEED,
        "start": start,
        "rows": rows,
    }
    if (config.compared_on or "").startswith("shapes:"):  # else there is nothing to render
        a, b = fd_shapes(before, prompts), fd_shapes(after, prompts)
        table.add_row("fd-shapes (lower is better)", f"{a:.4f}", f"{b:.4f}", f"x {b / a:.3f}", "")
        content["fd-shapes"] = {"start": a, "result": b, "ratio": b / a}
    console.print(table)
    write_json(output / "comparison.json", content)
    role = "the reward" if rewards else "a held-out scorer"
    first = next((comparison.Scores(name, role, *both) for name, both in scored.items()), None)
    shown = comparison.sections(len(prompts), first, seed=SEED)
    comparison.draw(output / "comparison.png", before, after, prompts, shown, first, start=start, result=output.name)
    console.print(f"{output / 'comparison.png'}: {comparison.said(shown)}; the model is {result}")

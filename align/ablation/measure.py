"""What is measured of a run of a sweep, or of a baseline."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.ablation.config import WIN, Baseline, Measure
from align.training import compare
from evaluate import distribution, embedded, scorers
from evaluate.features import Batch
from evaluate.pipelines import address
from prompts.io.errors import UserError
from prompts.io.files import text_sha256, write_json
from prompts.readers import read_prompts

SEED = 20_000  # of the order of captions; noise is `align.training.compare.SEED`'s
CHUNK = 256  # images scored together


def measure(
    model: str,
    options: Measure,
    *,
    baseline: Baseline | None = None,
    cache: Path | None = None,
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`metrics`: every metric of a model, its value and the images it is of, None where the model draws no finite
    images. `drawing_seconds`: core-seconds for ten images.

    cache: a file for what `over` scores, which is the same for every model. known: metrics that `still_known` has.
    """
    known = known or {}
    if known.keys() >= options.metrics.keys():  # which of them is better has changed, or one is not asked any more
        return {"metrics": {name: known[name] for name in options.metrics}, "drawing_seconds": None}
    texts = captions(options) * options.images
    began = time.process_time()
    images = _drawn(model, texts, options, baseline or Baseline(model=model))
    drawing = 10 * (time.process_time() - began) / len(texts)
    if not images.isfinite().all():
        return {"metrics": None, "drawing_seconds": drawing}
    names = {name: name.removeprefix(WIN) for name in options.metrics if name not in known}
    wins = {name: scorer for name, scorer in names.items() if name.startswith(WIN)}
    scores = _scores([name for name in dict.fromkeys(names.values()) if scorers.resolve(name)], images, texts)
    values = {name: scores[name].mean().item() for name in names if name in scores}
    if wins:
        rivals = _rivals(options, texts, sorted(wins.values()), cache)
        for name, scorer in wins.items():
            gap = scores[scorer] - rivals[scorer]
            values[name] = ((gap > 0).double() + (gap == 0).double() / 2).mean().item()
    batches = [(Batch(list(part)), i * CHUNK) for i, part in enumerate(images.split(CHUNK))]  # which share features
    for name in names:
        if name not in values:
            metric = distribution.load(name)
            for batch, first in batches:
                metric.update(batch, texts[first : first + CHUNK])
            values[name] = metric.compute().value
    metrics = dict(known) | {name: {"value": value, "n": len(texts)} for name, value in values.items()}
    return {"metrics": {name: metrics[name] for name in options.metrics}, "drawing_seconds": drawing}


def still_known(metrics: Mapping[str, Any] | None, before: Measure, now: Measure) -> dict[str, Any]:
    """Of the metrics of a model that was measured as `before`, those that `now` would find again: all where the images
    are the same, but for the wins over other images.
    """

    def images(of: Measure) -> tuple[Any, ...]:
        return of.prompts, of.captions, of.images, next(iter(of.metrics))  # the reward may have chosen among them

    if metrics is None or images(before) != images(now):
        return {}
    same_rivals = (before.over, before.over_seed) == (now.over, now.over_seed)
    return {name: value for name, value in metrics.items() if same_rivals or not name.startswith(WIN)}


def check(options: Measure, baselines: Mapping[str, Baseline]) -> None:
    """Raise UserError for what would otherwise be known once a run has trained: captions, a scorer or a metric that
    cannot be had or needs more than an image and its caption, a model that is not there.
    """
    captions(options)
    for name in dict.fromkeys(name.removeprefix(WIN) for name in options.metrics):
        if scorers.resolve(name):
            scorers.load(name).check_meta(None)
        elif distribution.load(name).within_prompt and options.images < 2:
            raise UserError(f"measure.metrics: {name} compares images of one prompt; set measure.images to 2 or more")
    if options.over:
        address.runnable(options.over)
    for name, baseline in baselines.items():
        recipe = address.runnable(baseline.model)
        if baseline.steps and (recipe.timesteps or recipe.sigmas):
            raise UserError(
                f"baselines.{name}.steps: {baseline.model} is drawn at the timesteps of its recipe, however many are"
                " asked for; leave steps out"
            )


def captions(options: Measure) -> list[str]:
    """Of each of which `images` are drawn. One may be there several times: families of `shapes` count alike."""
    listed = read_prompts(options.prompts)
    order = np.random.default_rng(SEED).permutation(len(listed))
    return [listed[i] for i in order[np.arange(options.captions) % len(listed)]]


def _drawn(model: str, texts: list[str], options: Measure, baseline: Baseline) -> Tensor:
    """An image per text; of `best_of`, the one that the reward likes best."""
    options_of_call: dict[str, Any] = {"num_inference_steps": baseline.steps, "guidance_scale": baseline.guidance_scale}
    overrides = {key: value for key, value in options_of_call.items() if value}
    reward = next(iter(options.metrics))
    sampler = {"name": "best_of", "n": baseline.best_of, "scorer": reward} if baseline.best_of > 1 else None
    return compare.images_of(model, texts, title="measuring", sampler=sampler, **overrides)


def _scores(names: Sequence[str], images: Tensor, texts: list[str]) -> dict[str, Tensor]:
    return compare.scores_of({name: scorers.load(name) for name in names}, images, texts, at_once=CHUNK)


def _rivals(options: Measure, texts: list[str], names: list[str], cache: Path | None) -> dict[str, Tensor]:
    """What the scorers say of the images of `options.over`, of the same captions."""
    seed = compare.SEED if options.over_seed is None else options.over_seed
    of = text_sha256(json.dumps([options.over, seed, texts, names, embedded.digest()]))
    kept = json.loads(cache.read_text(encoding="utf-8")) if cache and cache.is_file() else {}
    if kept.get("of") != of:
        assert options.over is not None
        images = compare.images_of(options.over, texts, title=f"drawing {options.over}", seed=seed)
        scores = _scores(names, images, texts)
        kept = {"of": of, "scores": {name: score.tolist() for name, score in scores.items()}}
        if cache:
            write_json(cache, kept)
    return {name: torch.tensor(kept["scores"][name], dtype=torch.float64) for name in names}

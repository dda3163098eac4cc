"""A suite, a model and metrics in; per-image records and one row of a leaderboard out.

Everything is a function of the settings: an interrupted run continues where it was, shards fill one folder between
them, and whoever finds it full writes the row, which is the same row each way.
"""

import ast
import copy
import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from evaluate import distribution, environment, pipelines, samplers, scorers
from evaluate.console import console
from evaluate.distribution import DistributionMetric
from evaluate.pipelines import address
from evaluate.results import leaderboard, summary
from evaluate.results.records import Records, file_name
from evaluate.runs.blocks import Block, cut_into_blocks
from evaluate.runs.draw import MakeSampler, draw_blocks, make_sampler
from evaluate.runs.images import existing_images, images_digest
from evaluate.runs.score import Scores, measure_blocks, score_blocks
from evaluate.runs.settings import Settings, slug
from evaluate.runs.store import Store, StoredImage
from evaluate.scorers import Scorer
from prompts.io.errors import UserError
from prompts.io.files import text_sha256, write_json

#: What scores depend on lies in these packages, extensions among them.
OURS = ("evaluate.", "prompts.")


def run_and_tell(settings: Settings) -> Records | None:
    """Run, and print the row. Returns its records, or None where blocks are left to other shards."""
    path = run(settings)
    if path is None:
        return None
    records = Records.load(path)
    summary.show(records, summary.summarise(records))
    console.print(f"row in {row_of(settings)}, records in {path}")
    return records


def run(
    settings: Settings,
    *,
    show: bool = True,
    make: MakeSampler = make_sampler,
    load: Callable[..., Scorer] = scorers.load,
) -> Path | None:
    """Draw what is not drawn and score what is not scored; with all of it there, write the records and the row.

    What cannot be measured is refused before the first image is drawn, so scorers are loaded first, once. They wait in
    the host's memory while the model has the GPU, and go there when something is to be scored.

    make: (model, device=, dtype=) -> what draws from it. load: loads a scorer. Returns the records' file, or None where
    blocks are left to other shards.
    """
    leaderboard.read(row_of(settings))  # one that cannot take this run's row is refused now
    if not settings.images and (said := address.unsaid(settings.model)):
        console.print(said)
    loaded, metrics = _load(settings, load)
    made_by = identity(settings)
    digest = text_sha256(json.dumps(made_by, sort_keys=True))
    folder = settings.output / "runs" / f"{slug(settings.model)}-{digest[:12]}"
    write_json(folder / "made-by.json", made_by)
    store = Store(folder / "images")
    scores = {scorer.protocol: Scores(folder / "scores" / _kept_as(scorer, settings.device)) for scorer in loaded}
    blocks = cut_into_blocks(settings.suite.prompts, settings.seeds, settings.batch)
    shard = blocks[settings.shard[0] :: settings.shard[1]]

    images = draw_blocks(settings, shard, store, make, show=show)
    score_blocks(settings, [(block, images[block.index]) for block in shard], store, loaded, scores, show=show)

    finished = [read for block in blocks if (read := _read(block, store, scores))]
    if missing := len(blocks) - len(finished):
        left = f"{missing} of {len(blocks)} blocks are left to other shards"
        console.print(f"{folder}: {left}; the last one writes the row")
        return None
    estimates = measure_blocks(metrics, [(block.block, block.images) for block in finished], store, show=show)
    records = _records(settings, made_by, finished, loaded, estimates)
    path = folder / file_name(settings.suite.name, settings.suite.sha256, settings.command)
    records.save(path)
    leaderboard.upsert(row_of(settings), leaderboard.row(records, settings.device))
    return path


def row_of(settings: Settings) -> Path:
    """The leaderboard that a run's row is for."""
    return settings.output / f"{settings.suite.name}.csv"


def identity(settings: Settings) -> dict[str, Any]:
    """Everything an image of this run depends on besides its prompt and seed."""
    if settings.images:
        return {
            "images_sha256": images_digest(settings.images),
            "hardware": environment.processor(settings.device),  # shards that score are of one kind too
        }
    recipe = pipelines.read_recipe(settings.model)
    read, below = samplers.make(recipe).weights_sha256, pipelines.scheduler_of(settings.model)
    return {
        "model_sha256": pipelines.digest(settings.model),
        **({"sampler_sha256": read} if read else {}),
        # Of a recipe that this one leans on.
        **({"scheduler": below[0].model_dump(mode="json")} if below and not recipe.scheduler else {}),
        "recipe": recipe.record(),
        "dtype": settings.dtype,
        "hardware": environment.processor(settings.device),
        "batch": settings.batch,
        "versions": environment.versions("onestep-align", "torch", "diffusers", "transformers"),
    }


def _kept_as(scorer: Scorer, device: str) -> str:
    """The folder of a scorer's scores, named by what they depend on besides images and prompts, so that what another
    version of it said is not taken for its own: weights, versions, the processor, and the code, of ours and of
    extensions, that its classes and its preparation are of and lean on.
    """
    by = environment.versions(
        "onestep-align", "torch", "torchvision", "transformers", "tokenizers", "open_clip_torch", "pillow"
    )
    code = [text_sha256(file.read_text(encoding="utf-8")) for file in sorted(_code_of(scorer))]
    digest = text_sha256(json.dumps([scorer.weights_sha256, by, environment.processor(device), code]))
    return slug(f"{scorer.protocol}-{digest[:12]}")


def _code_of(scorer: Scorer) -> set[Path]:
    """The files that a scorer's classes and its family's module are of, and all of ours that they import."""
    kinds = {kind for part in scorer.modules() for kind in type(part).__mro__} | {type(scorer.prepare)}
    names = {kind.__module__ for kind in kinds} | scorers.module_of(scorer.protocol)
    files, found = {_file_of(name) for name in names if name.startswith(OURS)}, set[Path]()
    while new := {file for file in files if file} - found:
        found |= new
        files = {_file_of(name) for file in new for name in _imported(file)}
    return found


def _file_of(module: str) -> Path | None:
    """A module's file; None for a name that is none, but of something in one."""
    with suppress(ModuleNotFoundError):
        spec = importlib.util.find_spec(module)
        return Path(spec.origin) if spec and spec.origin else None
    return None


@cache
def _imported(file: Path) -> set[str]:
    """Names of our modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(OURS):
            names |= {str(node.module), *(f"{node.module}.{each.name}" for each in node.names)}
    return {name for name in names if name.startswith(OURS)}


def _load(settings: Settings, load: Callable[..., Scorer]) -> tuple[list[Scorer], list[DistributionMetric]]:
    """Scorers, on the CPU, and distribution metrics.

    Raises UserError for what is unavailable, and for what cannot measure images of the model's size.
    The model itself is fetched later: a name that stands for none is refused before, its weights after what is small.
    """
    if settings.images:
        existing_images(settings.images, settings.suite.prompts, seeds=len(settings.seeds))
    else:
        address.runnable(settings.model)
    names = {kind: [name for name in settings.metrics if kind.resolve(name)] for kind in (scorers, distribution)}
    compared = _compared(settings, names[distribution])
    metrics = [
        distribution.load(
            name,
            device=settings.device,
            weights=settings.weights.get(name),
            reference=str(settings.reference) if settings.reference and name in compared else None,
        )
        for name in names[distribution]
    ]
    loaded = [load(name, device="cpu", weights=settings.weights.get(name)) for name in names[scorers]]
    _check_prompts(settings, loaded, metrics)
    size = None if settings.images else pipelines.size(settings.model)
    if size:
        _check_size(settings, size, [*loaded, *metrics])
    return loaded, metrics


def _check_prompts(settings: Settings, loaded: Sequence[Scorer], metrics: Sequence[DistributionMetric]) -> None:
    """Raise UserError for what needs to know more of the suite's prompts, or to have more images of each."""
    prompts = settings.suite.prompts
    for scorer in loaded:
        scorer.check_meta([prompt.meta for prompt in prompts])
        for group in scorer.macro.values():
            if any(group not in prompt.group for prompt in prompts):
                raise UserError(
                    f"--metric {scorer.protocol}: a mean over groups of prompts by {group!r}, which not every prompt of"
                    f" {settings.suite.name} has; give it one"
                )
    alone = len(settings.seeds) == 1 and len({prompt.text for prompt in prompts}) == len(prompts)
    if alone and (within := [metric.protocol for metric in metrics if metric.within_prompt]):
        raise UserError(
            f"--metric {within[0]}: compares a prompt's images, and there would be one of each; give --per-prompt 2"
        )


def _compared(settings: Settings, names: Sequence[str]) -> dict[str, str]:
    """What the images at --reference are to be, by the name of each metric that compares with them.

    Raises UserError where there is no such metric, or where two want different images.
    """
    compared = {name: real for name, real in distribution.references().items() if name in names}
    if settings.reference and not compared:
        raise UserError(f"--reference {settings.reference}: no metric here compares with it; leave it out")
    wanted = {real: name for name, real in compared.items() if real != distribution.OF_YOUR_CHOICE}
    if settings.reference and len(wanted) > 1:
        one, other = list(wanted.items())[:2]
        raise UserError(
            f"--reference {settings.reference}: {one[1]} compares with {one[0]} and {other[1]} with {other[0]}; measure"
            " them one at a time"
        )
    return compared


def _check_size(settings: Settings, size: tuple[int, int], metrics: Sequence[Scorer | DistributionMetric]) -> None:
    """Raise UserError for a metric that takes no images of the height and width that the model draws."""
    image, prompts = torch.zeros(1, 3, *size, dtype=torch.uint8), [settings.suite.prompts[0].text]
    for metric in metrics:
        try:
            if isinstance(metric, DistributionMetric):
                # A copy takes the image in: what the metric itself has gathered stays as it is.
                copy.copy(metric).update(image, prompts)
            else:
                metric.prepare(image)
        except ValueError as error:
            drawn = f"the {size[1]} x {size[0]} images of {settings.model}"
            raise UserError(f"--metric {metric.protocol}: cannot measure {drawn} ({error}); leave it out") from None


class FinishedBlock(NamedTuple):
    """A block with all of its images and scores, as they were read together."""

    block: Block
    images: list[StoredImage]
    scores: dict[str, list[dict[str, Any]]]


def _read(block: Block, store: Store, scores: Mapping[str, Scores]) -> FinishedBlock | None:
    """A block, or None where it lacks something; what other shards did of it is read too."""
    images, rows = store.read(block), {}
    if images is None:
        return None
    for protocol, kept in scores.items():
        scored = kept.read(block, images)
        if scored is None:
            return None
        rows[protocol] = scored
    return FinishedBlock(block, images, rows)


def _records(
    settings: Settings,
    made_by: dict[str, Any],
    finished: Sequence[FinishedBlock],
    loaded: Sequence[Scorer],
    estimates: dict[str, Any],
) -> Records:
    frame = pd.DataFrame([row for block in finished for row in _rows(block, loaded)])
    scored = not frame.filter(like="score.").isna().to_numpy().any() and not frame["error"].notna().any()
    whole = scored and all(math.isfinite(estimate["value"]) for estimate in estimates.values())
    return Records(
        frame,
        {
            "suite": settings.suite.name,
            "suite_sha256": settings.suite.sha256,
            "model": settings.model,
            "made_by": made_by,
            "n_expected": len(frame),
            "protocols": {column: scorer.weights_sha256 for scorer in loaded for column in scorer.columns},
            "macro": {column: group for scorer in loaded for column, group in scorer.macro.items()},
            "complete": whole,
            "distribution": estimates,
            "command": settings.command,
        },
    )


def _rows(finished: FinishedBlock, loaded: Sequence[Scorer]) -> list[dict[str, Any]]:
    """A block's rows, as records hold them."""
    rows = []
    for i, (row_of_suite, image) in enumerate(zip(finished.block.rows, finished.images, strict=True)):
        scores = {scorer.protocol: finished.scores[scorer.protocol][i] for scorer in loaded}
        errors = [image.error, *(f"{name}: {score['error']}" for name, score in scores.items() if score["error"])]
        row: dict[str, Any] = {"id": row_of_suite.prompt.id, "prompt": row_of_suite.prompt.text}
        row |= {f"group.{name}": value for name, value in row_of_suite.prompt.group.items()}
        row |= {"seed": row_of_suite.seed, "image_sha256": image.sha256, "batch": image.batch}
        row["error"] = "; ".join(filter(None, errors)) or None
        for scorer in loaded:
            said = scores[scorer.protocol]
            row |= {f"score.{column}": said["scores"].get(column, np.nan) for column in scorer.columns}
            if said["details"] is not None:
                row[f"details.{scorer.protocol}"] = json.dumps(said["details"])
        rows.append(row)
    return rows

"""The model card: what a model is, how it was made, how to draw with it, how good it is. Nothing in it is about this
machine but the hardware, and whatever a user wrote is inert.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import EvalResult, ModelCardData

from align.config.methods import METHODS, Paper
from align.config.train import TRAIN, TrainConfig
from align.generators import GeneratorOptions
from align.presets.load import presets, resolve
from evaluate import environment, families
from evaluate.pipelines.address import hub_id
from evaluate.pipelines.recipe import Recipe
from evaluate.stats import percent
from prompts.io import hub
from prompts.io.markdown import block, code, plain, table

#: What is described: a whole pipeline, a LoRA, or a network alone with a recipe.
Kind = Literal["pipeline", "lora", "network"]
README = "README.md"


DRAW = {
    "pipeline": """import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({place!r}, torch_dtype={dtype})
pipeline(prompt={prompt!r}, {arguments}).images[0].save("image.png")
""",
    "recipe": """from evaluate import pipelines, samplers

pipeline, recipe = pipelines.load({place!r}), pipelines.read_recipe({place!r})
images = samplers.draw(pipeline, recipe, [{prompt!r}], seed=0)  # [1, 3, H, W] in [0, 1]
""",
    "fetched recipe": """from evaluate import pipelines, samplers
from huggingface_hub import snapshot_download

folder = snapshot_download({place!r})
pipeline, recipe = pipelines.load(folder), pipelines.read_recipe(folder)
images = samplers.draw(pipeline, recipe, [{prompt!r}], seed=0)  # [1, 3, H, W] in [0, 1]
""",
}
#: What stands before the code of a kind.
SAID = {
    "pipeline": "With stock diffusers:",
    "network": "A network alone; `recipe.yaml` says where all else is. With onestep-align:",
    "lora": (
        "A LoRA over the network that training started from, not over the result. `load_lora_weights` of stock"
        " diffusers puts it there where the pipeline has one; `recipe.yaml` says what else it takes. With"
        " onestep-align:"
    ),
}


def public(source: str) -> str:
    """A model or a file as it is named in public: a name or a hub id as it is, a local path by its last two parts."""
    path = Path(source).expanduser()
    if hub_id(source) and not path.exists():
        return source
    home = Path.home()
    path = path.relative_to(home) if path.is_relative_to(home) else path
    parts = [part for part in path.parts if part not in (path.anchor, ".", "..")]
    return "/".join(part for part in parts[-2:] if part != home.name) or "-"


def pinned(source: str | None) -> str | None:
    """`source` with the revision that the hub client has fetched of it, where it names a repository and no revision."""
    where = hub_id(source) if source else None
    if source is None or where is None or "@" in source or Path(source).exists():
        return source
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=where.repository, repo_type="model")
    reference = folder / "refs" / where.revision
    return f"{source}@{reference.read_text().strip()}" if reference.is_file() else source


def placed(source: str | None) -> str | None:
    """`pinned`, and of a path here that could be a hub id, one that cannot: exports are made from elsewhere too."""
    if source and Path(source).exists() and hub_id(source):
        return f"./{source}"
    return pinned(source)


def run_metadata(
    config: TrainConfig,
    *,
    step: int,
    prompts: int,
    example: str,
    protocols: Mapping[str, str],
    processes: int,
    device: Any,
) -> dict[str, Any]:
    """What the config of a run does not say, for its `run.json`. prompts: how many; example: one of them."""
    return {
        "step": step,
        "prompts": prompts,
        "example": example,
        "protocols": dict(protocols),
        "sources": {name: placed(getattr(config, name)) for name in ("reference", "pipeline", "initial")},
        "version": environment.versions("onestep-align", "torch", "diffusers", "transformers", "peft"),
        "commit": environment.commit(),
        "hardware": f"{processes} x {environment.processor(str(device))}",
    }


def card(
    config: TrainConfig,
    run: Mapping[str, Any],
    recipe: Recipe,
    *,
    name: str,
    place: str,
    kind: Kind = "pipeline",
    dtype: Any = torch.float32,
    comparison: Mapping[str, Any] | None = None,
    rows: Sequence[Mapping[str, str]] = (),
) -> str:
    """The card's Markdown.

    run: `run_metadata`, and `preset` where there is one. place: what the model is called where it is loaded. dtype: of
    its weights. comparison: what `align.training.compare` found. rows: of leaderboards.
    """
    paper = METHODS[config.method].paper
    lines = [
        f"# {plain(name)}",
        "",
        (
            f"A {_steps(recipe)} text-to-image generator, made with onestep-align by {plain(paper.name)}."
            f" {plain(paper.does)} {_cite(paper)}"
        ),
        "",
        "## Drawing",
        "",
        SAID[kind],
        "",
        block(_draw(run, recipe, place, kind, dtype)),
        "",
        "## Making",
        "",
        *[f"- {what}: {said}" for what, said in _making(config, run).items()],
        "",
        *_scores(run, comparison, rows),
    ]
    return f"---\n{_head(run, recipe, kind, name, rows).to_yaml()}\n---\n\n" + hub.redact("\n".join(lines))


def write(folder: Path, text: str) -> None:
    """Put a card into a model's folder."""
    from prompts.io.files import replace

    replace(folder / README, lambda draft: draft.write_text(text, encoding="utf-8"))


def _cite(paper: Paper) -> str:
    return f"{plain(paper.reference)}, [arXiv:{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})."


def _steps(recipe: Recipe) -> str:
    return f"{'one' if recipe.steps == 1 else recipe.steps}-step"


def _head(
    run: Mapping[str, Any], recipe: Recipe, kind: Kind, name: str, rows: Sequence[Mapping[str, str]]
) -> ModelCardData:
    """What the hub reads, scores of leaderboards among it: of no licence, since what it derives from decides that."""
    sources = [run["sources"][name] for name in ("reference", "pipeline", "initial")]
    ids = [hub_id(source) for source in sources if source and not Path(source).exists() and not _embedded(source)]
    base = list(dict.fromkeys(where.repository for where in ids if where))
    results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type=hub.redact(row["suite"]),
            dataset_name=hub.redact(row["suite"]),
            metric_type=hub.redact(metric),
            metric_value=value,
            metric_args={"images": row[f"{metric} n"]},
        )
        for row in rows
        for metric in _measured(row)
        if (value := _number(row[metric])) is not None
    ]
    return ModelCardData(
        base_model=base or None,
        base_model_relation=("adapter" if kind == "lora" else "finetune") if base else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["text-to-image", _steps(recipe), "onestep-align", *(["lora"] if kind == "lora" else [])],
        model_name=hub.redact(name) if results else None,
        eval_results=results or None,
    )


def _embedded(source: str) -> bool:
    from evaluate import embedded

    return embedded.folder(source).exists()


def _draw(run: Mapping[str, Any], recipe: Recipe, place: str, kind: Kind, dtype: Any) -> str:
    form = kind if kind == "pipeline" else "recipe" if hub_id(place) is None else "fetched recipe"
    arguments = ", ".join(f"{key}={value!r}" for key, value in recipe.call().items())
    return hub.redact(DRAW[form].format(place=place, prompt=run["example"], arguments=arguments, dtype=dtype))


def _making(config: TrainConfig, run: Mapping[str, Any]) -> dict[str, str]:
    """What was done, in the order in which people ask."""
    warm = config.assistant.warmup
    updates, batch = max(run["step"] - warm, 0), config.batch_size
    divergence, method = config.divergence, METHODS[config.method]
    if method.of_scores:
        kind = (
            f"{plain(divergence.distance)} of scores, gradient {divergence.gradient}, weight {plain(divergence.weight)}"
        )
    else:
        kind = f"integral KL, weight {plain(divergence.weight)}"
    guidance = {
        "off": "none",
        "reference": f"in the reference, scale {config.guidance.scale:g}",
        "reward": f"as a reward, scale {config.guidance.scale:g}",
    }
    rewards = [
        f"{code(run['protocols'].get(reward.scorer, reward.scorer))} x {reward.scale:g}"
        + (f" with the weights {code(public(reward.weights))}" if reward.weights else "")
        for reward in config.rewards
    ]
    generator, lora = config.generator, config.lora
    further = {key: value for key, value in generator.model_dump().items() if key not in GeneratorOptions.model_fields}
    unit = "`1 + sigma_init`" if families.load(config.family).flow else "`sqrt(1 + sigma_init^2)`"
    scale = "`sigma_init`" if generator.input_scale == "sigma_init" else unit
    return {
        "Method": f"{plain(method.paper.name)} (`{config.method}`)",
        "Preset": _preset(config, run),
        "Steps": (
            f"{updates:,} of the generator, {updates * batch:,} images;"
            f" {(u := min(run['step'], warm) + updates * config.assistant.updates):,} of the assistant, {u * batch:,}"
            f" images; batch {batch:,}"
        ),
        "Prompts": f"{code(public(config.prompts))}, {run['prompts']:,}; no images but the generator's own",
        "Reference": (
            _source(run, "reference")
            + (f", all but the network from {_source(run, 'pipeline')}" if config.pipeline else "")
        ),
        "Started from": _source(run, "initial" if config.initial else "reference"),
        "Rewards": ", ".join(rewards) or "none",
        "Guidance": guidance[config.guidance.where],
        "Divergence": kind,
        "Generator": f"`sigma_init` {generator.sigma_init:g}, noise times {scale}"
        + "".join(f", {code(key)} {code(value)}" for key, value in further.items()),
        "Weights": (
            (f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}" if lora else "all trained")
            + (f", over a base in {lora.base}" if lora and lora.base else "")
            + f", average of decay {config.ema:g}, precision {config.precision}"
        ),
        "Seed": f"{config.seed}",
        "Software": f"{plain(run['version'])}; commit {code(run['commit']) if run['commit'] else 'unknown'}",
        "Hardware": plain(run["hardware"]),
    }


def _source(run: Mapping[str, Any], name: str) -> str:
    source = str(run["sources"][name])
    return code(public(source)) + ("" if hub_id(source) and not Path(source).exists() else ", a local file or folder")


def _preset(config: TrainConfig, run: Mapping[str, Any]) -> str:
    """The preset, and which of its settings were changed."""
    preset = run.get("preset")
    if preset not in presets(TRAIN):
        return "none"
    before, after = (each.model_dump() for each in (resolve(preset, TRAIN), config))
    changed = ", ".join(code(key) for key in after if before[key] != after[key])
    return code(preset) + (f"; changed: {changed}" if changed else "")


def _scores(
    run: Mapping[str, Any], comparison: Mapping[str, Any] | None, rows: Sequence[Mapping[str, str]]
) -> list[str]:
    """Tables of what was measured."""
    lines = [*(_compared(run, comparison) if comparison else []), *(line for row in rows for line in _row(row))]
    return ["## Scores", "", *lines] if lines else []


def _compared(run: Mapping[str, Any], comparison: Mapping[str, Any]) -> list[str]:
    """The model beside what it started from."""
    cells = []
    for row in comparison["rows"]:
        reward = " (reward)" if row["metric"] in run["protocols"].values() else ""
        interval = f"{row['mean']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        wins = percent(row["win_rate"], row["win_low"], row["win_high"])
        cells.append([f"{plain(row['metric'])}{reward}", f"{row['start']:.4f}", f"{row['result']:.4f}", interval, wins])
    if distance := comparison.get("fd-shapes"):
        before, after = f"{distance['start']:.4f}", f"{distance['result']:.4f}"
        cells.append(["fd\\-shapes (lower is better)", before, after, f"x {distance['ratio']:.3f}", ""])
    said = f"On {comparison['n']:,} held-out captions, the same noise for both;"
    said += " the difference with its 95 % interval, paired."
    return [said, "", *table(["metric", "start", "this model", "difference", "wins"], cells), ""]


def _row(row: Mapping[str, str]) -> list[str]:
    """A row of a leaderboard."""
    cells = []
    for metric in _measured(row):
        low, high = (row.get(f"{metric} {name}", "") for name in ("low", "high"))
        spread = f"[{low}, {high}]" if low else f"se {row.get(f'{metric} se', '-')}"
        cells.append([plain(text) for text in (metric, row[metric], spread, row[f"{metric} n"])])
    said = f"On {plain(row['suite'])}, {plain(row['n'])} images:"
    return [said, "", *table(["metric", "mean", "interval or error", "n"], cells), ""]


def _measured(row: Mapping[str, str]) -> list[str]:
    """The metrics of a leaderboard's row."""
    return [name.removesuffix(" n") for name in row if name.endswith(" n") and row[name]]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

"""Make the embedded world `shapes` again, from nothing but a seed: every stage, the
weights that ship, and their card.
"""

import json
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import Tensor

from align.config.train import TRAIN
from align.export.pipeline import copy
from align.options import Config
from align.presets.load import resolve
from align.run_folder import open_folder, opened, read_run
from align.training.compare import images_of
from align.training.loop import train
from align.training.validation import save_grid
from align.world import pretrain, reward_model
from align.world.config import PRETRAIN, REWARD
from evaluate import embedded
from evaluate.console import console
from evaluate.distribution.fd_shapes import fd_shapes
from prompts.io.files import replace, write_json
from prompts.io.yaml import read_yaml
from prompts.shapes import captions, render, sample_captions
from prompts.shapes.grammar import FAMILIES
from prompts.shapes.oracle import accuracy
from prompts.shapes.taste import TIE, preference

#: The folders of what is trained, by the names that `build` gives them.
STAGES = (
    "shapes-vae", "shapes-teacher", "shapes-clip", "shapes-preference-clip", "shapes-di", "base",
    "shapes-preference-weak", "weak", "shapes-preference", "aligned-first", "aligned",
)  # fmt: skip
#: Pairs that the weak preference model learns from: few, on purpose.
FEW = 1500
#: Pairs by the generator that drew both images, ties left out afterwards. `weak` is the base
#: generator aligned with the weak model.
MANY = {"base": 24_000, "teacher": 2_000, "weak": 8_000}
PAIRS_SEED = 20_000  # noise that no table is drawn from
MEASURED = 128  # held-out captions per family and figure
TEACHER_RECIPE = {"steps": 25, "guidance_scale": 2.0}
#: No model: the truth, in a model's place. Of the pipeline it takes the form alone.
RENDERER_RECIPE = {"pipeline": "../teacher", "sampler": {"name": "shapes_renderer"}, "steps": 1, "guidance_scale": 1.0}
WEAK = ("rewards=[{scorer: shapes/preference-weak, scale: 0.04}]", "steps=320", "final_comparison.prompts=0")
#: Facts come slowly and stay, colours fast, and go back as fast: first much of the reward, then little.
ALIGNED_FIRST = (
    "rewards=[{scorer: shapes/preference, scale: 0.015}]", "ema=0.99", "steps=620", "final_comparison.prompts=0",
)  # fmt: skip
ALIGNED = (
    "rewards=[{scorer: shapes/preference, scale: 0.004}]", "guidance.scale=1.4", "assistant.updates=2", "ema=0.99",
    "steps=300", "final_comparison.prompts=0",
)  # fmt: skip


def build(work: Path, target: Path) -> None:
    """Run what `work` does not hold yet, and write `target/shapes`. An interrupted stage is resumed."""
    home = target / "shapes"
    embedded.HERE = target  # so that presets find this world's parts, not those that shipped
    work.mkdir(parents=True, exist_ok=True)
    vae = _pretrain("shapes-vae", work)
    _place_whole(_pretrain("shapes-teacher", work, f"vae={vae}"), home / "teacher", recipe=TEACHER_RECIPE)
    _place_whole(_pretrain("shapes-clip", work), home / "clip")
    clip = _pretrain("shapes-preference-clip", work)
    di = _train("shapes-di", "shapes-di", work)
    _train("base", "shapes-base", work, f"initial={di}")
    _place_network(work / "base", home / "base")

    few = make_pairs(work / "pairs-few", "shapes/base", n=FEW, seed=1)
    _place_whole(_reward("shapes-preference-weak", few, work, clip), home / "preference-weak")
    weak = _train("weak", "shapes-distar", work, *WEAK)
    sources = {"base": "shapes/base", "teacher": "shapes/teacher", "weak": str(weak)}
    folders = [
        make_pairs(work / "pairs" / name, sources[name], n=n, seed=seed, source=name).parent
        for seed, (name, n) in enumerate(MANY.items(), 2)
    ]
    many = _join(folders, work / "pairs" / "pairs.jsonl")
    _place_whole(_reward("shapes-preference", many, work, clip), home / "preference")
    first = _train("aligned-first", "shapes-distar", work, *ALIGNED_FIRST)
    _train("aligned", "shapes-distar", work, f"initial={first}", *ALIGNED)
    _place_network(work / "aligned", home / "aligned")
    (home / "renderer").mkdir(exist_ok=True)
    (home / "renderer" / "recipe.yaml").write_text(yaml.safe_dump(RENDERER_RECIPE))
    write_card(work, home)


def _finished(output: Path, run: Callable[[bool], bool], *, steps: int | None = None) -> Path:
    """A stage's checkpoint in `output`.

    What is not there yet is made by `run(resume)`, which says whether it ran to its end. steps: at which its run says
    that it is finished; an interrupted one has left a checkpoint too.
    """
    there = (output / "checkpoint").is_dir() and (steps is None or read_run(output).get("step") == steps)
    if not there and not run((output / "config.yaml").is_file()):
        raise KeyboardInterrupt
    return output / "checkpoint"


def _same(config: Config, output: Path) -> None:
    """Raise UserError where the run that is there is another: it must not become a part of the world."""
    if (output / "config.yaml").is_file():
        open_folder(config, output, resume=True)


def _pretrain(preset: str, work: Path, *sets: str) -> Path:
    config = resolve(preset, PRETRAIN, sets=sets)
    _same(config, work / preset)

    def run(resume: bool) -> bool:
        with opened(config, work / preset, resume=resume):
            return pretrain.run(config, work / preset, resume=resume)

    return _finished(work / preset, run)


def _reward(preset: str, pairs: Path, work: Path, clip: Path) -> Path:
    config: Any = resolve(preset, REWARD, sets=[f"initial={clip}"])
    _same(config, work / preset)

    def run(resume: bool) -> bool:
        with opened(config, work / preset, resume=resume):
            return reward_model.train(config, reward_model.read_pairs(pairs), work / preset, resume=resume)

    return _finished(work / preset, run)


def _train(name: str, preset: str, work: Path, *sets: str) -> Path:
    config: Any = resolve(preset, TRAIN, sets=sets)
    _same(config, work / name)

    def run(resume: bool) -> bool:
        with opened(config, work / name, resume=resume, preset=preset):
            return train(config, work / name, resume=resume)

    return _finished(work / name, run, steps=config.assistant.warmup + config.steps)


def _place_whole(source: Path, target: Path, *, recipe: dict[str, Any] | None = None) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    if recipe:
        (target / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def _place_network(run: Path, target: Path) -> None:
    """The bare network in fp16, all else being the teacher's."""
    shutil.rmtree(target, ignore_errors=True)
    copy(run / "checkpoint", target, dtype="fp16", pipeline="../teacher", lora=False, scores=None, push_to=None)
    (target / "README.md").unlink(missing_ok=True)


def make_pairs(folder: Path, model: str, *, n: int, seed: int, source: str = "") -> Path:
    """Pairs of images that `model` drew of `n` training captions, labelled by the rule in `prompts.shapes.taste` before
    they are rounded to 8 bits; ties are left out. Returns the file that `align reward` reads.
    """
    path = folder / "pairs.jsonl"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    prompts = sample_captions(n, split="train", seed=seed)
    drawn = images_of(
        model,
        [prompt for prompt in prompts for _ in range(2)],
        title=f"drawing pairs of {source or model}",
        seed=PAIRS_SEED + seed,
    )
    rows = []
    for i, prompt in enumerate(prompts):
        pair = (drawn[2 * i], drawn[2 * i + 1])
        preferred = preference(pair[0].numpy(), pair[1].numpy(), prompt)
        if not preferred:
            continue
        row = {"prompt": prompt, "source": source}
        for key, image in zip(("preferred", "rejected"), pair[::-preferred], strict=True):
            row[key] = f"{i:05d}-{key}.png"
            Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(folder / row[key])
        rows.append(row)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    replace(path, lambda draft: draft.write_text(text))  # what is there is taken for whole
    return path


def _join(folders: Sequence[Path], path: Path) -> Path:
    """One file for the pairs of several folders beside it."""
    lines = []
    for folder in folders:
        for line in (folder / "pairs.jsonl").read_text().splitlines():
            row = json.loads(line)
            lines.append(
                json.dumps(row | {key: f"{folder.name}/{row[key]}" for key in ("preferred", "rejected")}) + "\n"
            )
    replace(path, lambda draft: draft.write_text("".join(lines)))
    return path


def draw_samples(path: Path, *, columns: int = 8) -> None:
    """A grid of held-out captions: the renderer, the teacher, the base and the aligned generator, one row each."""
    shown = (("one", "count", "pair", "pair")[i % 4] for i in range(columns))
    prompts = [sample_captions(columns, split="test", seed=11, family=family)[i] for i, family in enumerate(shown)]
    rows = [torch.from_numpy(render(prompts, seed=1))]
    rows += [
        images_of(f"shapes/{model}", prompts, title=f"drawing {model}") for model in ("teacher", "base", "aligned")
    ]
    save_grid(torch.cat(rows), path, columns=columns)


def measure() -> dict[str, dict[str, Any]]:
    """Oracle accuracy by family and `fd-shapes` of the renderer and of every model, on held-out captions."""
    prompts = {family: sample_captions(MEASURED, split="test", seed=5, family=family) for family in FAMILIES}
    everything = [caption for each in prompts.values() for caption in each]
    sources: dict[str, Tensor] = {"renderer": torch.from_numpy(render(everything, seed=77))}
    for model in ("teacher", "base", "aligned"):
        sources[model] = images_of(f"shapes/{model}", everything, title=f"measuring {model}")
    sources["teacher, unguided"] = images_of(
        "shapes/teacher", everything, title="measuring teacher, unguided", guidance_scale=1.0
    )
    result: dict[str, dict[str, Any]] = {}
    for name, images in sources.items():
        parts = dict(zip(FAMILIES, images.split(MEASURED), strict=True))
        row: dict[str, Any] = {family: accuracy(part.numpy(), prompts[family]) for family, part in parts.items()}
        result[name] = row | {"fd-shapes": fd_shapes(images, everything)}
    return result


def write_card(work: Path, home: Path) -> None:
    """`README.md` and `card.json` beside the weights: how they were made and how good they are."""
    quality = measure()
    # In the order in which they were begun; what else is in the folder is no stage.
    begun = [path for path in work.glob("*/config.yaml") if path.parent.name in STAGES]
    stages = [path.parent.name for path in sorted(begun, key=lambda path: path.stat().st_mtime)]
    runs = {
        name: {
            "seed": read_yaml(work / name / "config.yaml")["seed"],
            "minutes": _minutes(work / name),
            "config": read_yaml(work / name / "config.yaml"),
        }
        for name in stages
    }
    models = ("preference", "preference-weak")
    metrics = {name: json.loads((work / f"shapes-{name}" / "metrics.json").read_text()) for name in models}
    commit = (
        subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        ).stdout.strip()
        or "unknown"
    )
    size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) / 2**20
    card = {
        "command": "align world",
        "commit": commit,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "stages": runs,
        "quality": quality,
        "preference": metrics,
    }
    draw_samples(home / "samples.png")
    write_json(home / "card.json", card)
    (home / "README.md").write_text(_card_text(card, size))
    console.print(f"{home}: {size:.1f} MiB; its card is {home / 'README.md'}")


def _minutes(run: Path) -> float:
    """Wall time from the run's configuration to its last logged step."""
    return round(((run / "log.jsonl").stat().st_mtime - (run / "config.yaml").stat().st_mtime) / 60, 1)


def _card_text(card: dict[str, Any], size: float) -> str:
    lines = [
        "# The weights of the world `shapes`",
        "",
        (
            f"Made by `{card['command']}` at commit {card['commit']} with torch {card['torch']} ({card['machine']}, 2"
            " CPU cores, other work beside it), from presets of the same names (`base`: shapes-base; `weak`, `aligned`:"
            f" shapes-distar, otherwise set); {size:.1f} MiB, fp16. All of it was trained here, from rendered images."
        ),
        "",
        "| stage | seed | minutes |",
        "|---|---|---|",
        *[f"| {name} | {row['seed']} | {row['minutes']} |" for name, row in card["stages"].items()],
        "",
        (
            f"Measured on {MEASURED} held-out captions per family: the share of images in which the pixel oracle reads"
            " every fact of the caption, the share with every colour right, and fd-shapes over all of them (lower is"
            " better; the renderer's own row is the floor). So few images have larger distances than more would have,"
            " and do not put these models in order: `leaderboards/shapes.csv` has 2,048 of each, with intervals."
        ),
        "",
        "| images from | one | count | pair | colours: one | count | pair | fd-shapes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in card["quality"].items():
        correct = " | ".join(f"{row[family]['correct']:.3f}" for family in FAMILIES)
        colours = " | ".join(f"{row[family]['colour']:.3f}" for family in FAMILIES)
        lines.append(f"| {name} | {correct} | {colours} | {row['fd-shapes']:.4f} |")
    many, few = card["preference"]["preference"], card["preference"]["preference-weak"]
    by_source = ", ".join(
        f"{value:.1%} of those of {key.partition('/')[2]}"
        for key, value in many.items()
        if key.startswith("held_out_accuracy/")
    )
    lines += [
        "",
        (
            f"The teacher is drawn with {TEACHER_RECIPE['steps']} Euler steps at guidance"
            f" {TEACHER_RECIPE['guidance_scale']}; base and aligned in one step."
        ),
        "",
        (
            "Pairs are two images of one caption by one generator (base, teacher, or weak: the base aligned with the"
            " weak preference model), labelled by one rule: more of the caption's facts first, then more vivid"
            f" colours; pairs of as many facts and a vividness within {TIE} are left out. The preference model learned"
            f" from {many['pairs'] - many['held_out_pairs']:,} pairs and ranks {many['held_out_accuracy']:.1%} of"
            f" {many['held_out_pairs']:,} pairs of held-out prompts rightly ({many['held_out_accuracy_before']:.1%}"
            f" before it had seen any): {by_source}. The weak one learned from {few['pairs'] - few['held_out_pairs']:,}"
            f" pairs of the base generator and ranks {few['held_out_accuracy']:.1%} of {few['held_out_pairs']:,}"
            " rightly, on purpose."
        ),
        "",
        "Training captions: " + ", ".join(f"{len(captions('train', family))} {family}" for family in FAMILIES) + ".",
        "",
        "`card.json` holds every setting and figure. Versions: "
        + ", ".join(f"{name} {metadata.version(name)}" for name in ("diffusers", "transformers"))
        + ".",
        "",
    ]
    return "\n".join(lines)

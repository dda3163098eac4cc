"""Make the embedded world `shapes` again, from nothing but a seed: every stage, the weights that ship, and their card."""

import json
import platform
import shutil
import subprocess
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import Tensor

from align import config as configs
from align import runs
from align.monitor import save_grid
from align.report import pictures_of
from evaluate import embedded
from evaluate.console import console
from evaluate.sets.shapes import fd_shapes
from prompts.shapes import captions, render, sample_captions
from prompts.shapes.grammar import FAMILIES
from prompts.shapes.oracle import accuracy
from prompts.shapes.taste import preferred

PAIRS = 1500  # few, on purpose
MEASURED = 128  # held-out captions a family and figure
STAGES = (
    "shapes-vae", "shapes-teacher", "shapes-teacher-relations", "shapes-teacher-pairs", "shapes-teacher-layout",
    "shapes-clip", "shapes-preference-clip", "shapes-di", "shapes-preference", "shapes-distar",
)  # fmt: skip
TEACHER_RECIPE = {"steps": 25, "guidance_scale": 3.0}


def build(work: Path, target: Path) -> None:
    """Run what `work` does not hold yet, and write `target/shapes`. An interrupted stage is gone on with."""
    home = target / "shapes"
    embedded.HERE = target  # so that presets find this world's parts, not those that shipped
    work.mkdir(parents=True, exist_ok=True)
    needs: dict[str, list[str]] = {"shapes-teacher": [f"vae={work / 'shapes-vae' / 'checkpoint'}"]}
    for before, after in pairwise(STAGES[1:5]):  # the parts of the teacher's training
        needs[after] = [*needs["shapes-teacher"], f"initial={work / before / 'checkpoint'}"]
    for preset in STAGES[: STAGES.index("shapes-di")]:
        if not (work / preset / "checkpoint").is_dir():
            resume = (work / preset / "config.yaml").is_file()
            if not runs.pretrain(
                configs.resolve(preset, configs.PRETRAIN, sets=needs.get(preset, ())), work / preset, resume=resume
            ):
                raise KeyboardInterrupt
    _place_whole(work / "shapes-teacher-layout" / "checkpoint", home / "teacher", recipe=TEACHER_RECIPE)
    _place_whole(work / "shapes-clip" / "checkpoint", home / "clip")
    _train("shapes-di", work)
    _place_network(work / "shapes-di", home / "base")
    pairs = make_pairs(work / "pairs")
    if not (work / "shapes-preference" / "checkpoint").is_dir():
        initial = f"initial={work / 'shapes-preference-clip' / 'checkpoint'}"
        reward: Any = configs.resolve("shapes-preference", configs.REWARD, sets=[initial])
        runs.reward(reward, pairs, work / "shapes-preference", resume=(work / "shapes-preference" / "config.yaml").is_file())
    _place_whole(work / "shapes-preference" / "checkpoint", home / "preference")
    _train("shapes-distar", work)
    _place_network(work / "shapes-distar", home / "aligned")
    write_card(work, home)


def _train(preset: str, work: Path) -> None:
    if not (work / preset / "checkpoint").is_dir():
        config: Any = configs.resolve(preset, configs.TRAIN)
        if not runs.train(config, work / preset, resume=(work / preset / "config.yaml").is_file(), preset=preset):
            raise KeyboardInterrupt


def _place_whole(source: Path, target: Path, *, recipe: dict[str, Any] | None = None) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    if recipe:
        (target / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def _place_network(run: Path, target: Path) -> None:
    """The bare network in fp16, all else being the teacher's."""
    shutil.rmtree(target, ignore_errors=True)
    runs.export(run, target, dtype="fp16", pipeline="../teacher")
    (target / "README.md").unlink(missing_ok=True)


def make_pairs(folder: Path, *, n: int = PAIRS, model: str = "shapes/base") -> Path:
    """Pairs of pictures that `model` drew of training captions, labelled by the rule in `prompts.shapes.taste` before they are
    rounded to 8 bits."""
    path = folder / "pairs.jsonl"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    prompts = sample_captions(n, split="train", seed=1)
    drawn = pictures_of(model, [prompt for prompt in prompts for _ in range(2)], title="drawing pairs")
    rows = []
    for i, prompt in enumerate(prompts):
        a, b = drawn[2 * i], drawn[2 * i + 1]
        order = (b, a) if preferred(a.numpy(), b.numpy(), prompt) else (a, b)
        row = {"prompt": prompt}
        for key, picture in zip(("preferred", "rejected"), order, strict=True):
            row[key] = f"{i:05d}-{key}.png"
            Image.fromarray((picture.permute(1, 2, 0) * 255).round().byte().numpy()).save(folder / row[key])
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def draw_samples(path: Path, *, columns: int = 8) -> None:
    """A grid of held-out captions: the renderer, the teacher, the base and the aligned generator, a row each."""
    shown = (("one", "count", "pair", "pair")[i % 4] for i in range(columns))
    prompts = [sample_captions(columns, split="test", seed=11, family=family)[i] for i, family in enumerate(shown)]
    rows = [torch.from_numpy(render(prompts, seed=1))]
    rows += [pictures_of(f"shapes/{model}", prompts, title=f"drawing {model}") for model in ("teacher", "base", "aligned")]
    save_grid(torch.cat(rows), path, columns=columns)


def measure() -> dict[str, dict[str, Any]]:
    """Oracle accuracy by family and `fd-shapes` of the renderer and of every model, on held-out captions."""
    prompts = {family: sample_captions(MEASURED, split="test", seed=5, family=family) for family in FAMILIES}
    everything = [caption for each in prompts.values() for caption in each]
    sources: dict[str, Tensor] = {"renderer": torch.from_numpy(render(everything, seed=77))}
    for model in ("teacher", "base", "aligned"):
        sources[model] = pictures_of(f"shapes/{model}", everything, title=f"measuring {model}")
    sources["teacher, unguided"] = pictures_of(
        "shapes/teacher", everything, title="measuring teacher, unguided", guidance_scale=1.0
    )
    result: dict[str, dict[str, Any]] = {}
    for name, pictures in sources.items():
        parts = dict(zip(FAMILIES, pictures.split(MEASURED), strict=True))
        row: dict[str, Any] = {family: accuracy(part.numpy(), prompts[family]) for family, part in parts.items()}
        result[name] = row | {"fd-shapes": fd_shapes(pictures, everything)}
    return result


def write_card(work: Path, home: Path) -> None:
    """`README.md` and `card.json` beside the weights: how they were made and how good they are."""
    figures = measure()
    stages = [name for name in STAGES if (work / name).is_dir()]
    made = {
        name: {
            "seed": configs.read_yaml(work / name / "config.yaml")["seed"],
            "minutes": _minutes(work / name),
            "config": configs.read_yaml(work / name / "config.yaml"),
        }
        for name in stages
    }
    preference = json.loads((work / "shapes-preference" / "metrics.json").read_text())
    commit = (
        subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False).stdout.strip()
        or "unknown"
    )
    size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) / 2**20
    card = {
        "command": "align world",
        "commit": commit,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "stages": made,
        "quality": figures,
        "preference": preference,
    }
    draw_samples(home / "samples.png")
    (home / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (home / "README.md").write_text(_card_text(card, size))
    console.print(f"{home}: {size:.1f} MiB; its card is {home / 'README.md'}")


def _minutes(run: Path) -> float:
    """Wall time from the run's configuration to its last logged step."""
    return round(((run / "log.jsonl").stat().st_mtime - (run / "config.yaml").stat().st_mtime) / 60, 1)


def _card_text(card: dict[str, Any], size: float) -> str:
    lines = [
        "# The weights of the world `shapes`", "",
        f"Made by `{card['command']}` at commit {card['commit']} with torch {card['torch']} ({card['machine']}, 2 CPU cores, other work beside it), "
        f"from the presets of the same names; {size:.1f} MiB, fp16. All of it was trained here, from rendered pictures; nothing was fetched.", "",
        "| stage | seed | minutes |", "|---|---|---|",
        *[f"| {name} | {row['seed']} | {row['minutes']} |" for name, row in card["stages"].items()], "",
        f"Measured on {MEASURED} held-out captions a family: the share of pictures in which the pixel oracle reads every fact of the caption, "
        "the share with every colour right, and fd-shapes over all of them (lower is better; the renderer's own row is the floor).", "",
        "| pictures from | one | count | pair | colours: one | count | pair | fd-shapes |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in card["quality"].items():
        correct = " | ".join(f"{row[family]['correct']:.3f}" for family in FAMILIES)
        colours = " | ".join(f"{row[family]['colour']:.3f}" for family in FAMILIES)
        lines.append(f"| {name} | {correct} | {colours} | {row['fd-shapes']:.4f} |")
    p = card["preference"]
    lines += [
        "", f"The teacher is drawn with {TEACHER_RECIPE['steps']} Euler steps at guidance {TEACHER_RECIPE['guidance_scale']}; base and aligned in one step.", "",
        f"The preference model learned from {p['pairs'] - p['held_out_pairs']} pairs and ranks {p['held_out_accuracy']:.1%} of {p['held_out_pairs']} held-out pairs rightly "
        f"({p['held_out_accuracy_before']:.1%} before it had seen any). Pairs are two pictures of the base generator, labelled by one rule: more of the caption's facts first, "
        "then more vivid colours. It is imperfect on purpose.", "",
        "Training captions: " + ", ".join(f"{len(captions('train', family))} {family}" for family in FAMILIES) + ".", "",
        "`card.json` holds every setting and figure. Versions: " + ", ".join(f"{name} {metadata.version(name)}" for name in ("diffusers", "transformers")) + ".", "",
    ]  # fmt: skip
    return "\n".join(lines)

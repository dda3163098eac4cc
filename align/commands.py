"""What the commands of `align` do."""

import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from align.run_folder import opened, read_run
from evaluate.console import console, printer
from prompts.io.errors import UserError
from prompts.io.files import writable, write_json

if TYPE_CHECKING:
    from align.config.train import TrainConfig
    from align.options import Config
    from align.world.config import RewardConfig


def train(config: "TrainConfig", output: Path, *, resume: bool, preset: str | None = None) -> bool:
    """`align train`."""
    import torch
    from accelerate import PartialState

    from align.export.pipeline import describe
    from align.training.compare import final_comparison
    from align.training.loop import train as loop
    from align.training.process import PATIENCE

    process = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    main = process.is_main_process
    with opened(config, output, resume=resume, preset=preset) if main else nullcontext():
        if main and torch.cuda.is_available() and not resume:
            check_memory(config, processes=process.num_processes, available=torch.cuda.mem_get_info(process.device)[0])
        process.wait_for_everyone()
        finished = loop(config, output, resume=resume)
    if finished and main and config.final_comparison.prompts:
        final_comparison(config, output)
        describe(config, output)  # once more, with scores
    return finished


def check_memory(config: "TrainConfig", *, processes: int, available: int) -> None:
    """Raise UserError where a run needs more than `available` bytes; where that cannot be
    estimated, say so and continue.
    """
    from align.memory import remedies

    try:
        remedies.check(config, processes=processes, available=available)
    except UserError:
        raise
    except Exception as error:  # of libraries that do not know fake tensors: no reason to refuse a run
        console.print(
            f"the memory this run needs could not be estimated ({type(error).__name__}); training starts all the same"
        )


def dry_run(config: "TrainConfig", *, processes: int | None, gpu_memory: float | None) -> None:
    """`align train --dry-run`: what is trained, and what it needs of a GPU's memory, on stderr; stdout is the config's.

    gpu_memory: GiB; by default what is available, and without a GPU no limit. Raises UserError where it cannot fit.
    """
    import torch

    from align.memory import estimate, remedies

    n = processes or int(os.environ.get("WORLD_SIZE", "1"))
    limit = math.inf
    if gpu_memory is not None:
        limit = gpu_memory * estimate.GIB
    elif torch.cuda.is_available():
        limit = torch.cuda.mem_get_info()[0]
    remedies.show(remedies.check(config, processes=n, available=limit), processes=n)


def pretrain(config: "Config", output: Path, *, resume: bool) -> bool:
    """`align pretrain`."""
    from align.world.pretrain import run

    with opened(config, output, resume=resume):
        return run(config, output, resume=resume)


def reward(config: "RewardConfig", pairs: Path, output: Path, *, resume: bool) -> bool:
    """`align reward`."""
    from align.world.reward_model import read_pairs
    from align.world.reward_model import train as fit

    data = read_pairs(pairs)
    with opened(config, output, resume=resume):
        run, pairs_sha256 = read_run(output), data.sha256()
        if run.get("pairs", pairs_sha256) != pairs_sha256:
            raise UserError(
                f"--pairs {pairs}: not the pairs that {output} was begun with; give those, or start in another folder"
            )
        write_json(output / "run.json", run | {"pairs": pairs_sha256})
        return fit(config, data, output, resume=resume)


def sample(checkpoint: str, prompts: Sequence[str], output: Path, *, n: int, seed: int) -> None:
    """`align sample`."""
    from align.training.compare import draw
    from align.training.validation import save_grid
    from evaluate import pipelines
    from evaluate.environment import device_of
    from evaluate.precision import drawn_in, dtype_of

    if output.suffix.lower() != ".png":
        raise UserError(f"--output {output}: images are written as PNG; give it a name ending in .png")
    writable(output)
    recipe = pipelines.read_recipe(checkpoint)
    pipeline = pipelines.load(checkpoint, dtype=dtype_of(drawn_in(recipe.dtype, device_of(None))))
    each = [prompt for prompt in prompts for _ in range(n)]
    keys = [f"{prompt}/{i}" for prompt in prompts for i in range(n)]
    images = draw(pipeline, recipe, each, title="drawing", seed=seed, keys=keys)
    save_grid(images, output, columns=n)
    console.print(f"{output}: {len(prompts)} x {n} images of {checkpoint}, seed {seed}")


def export(
    run: Path,
    output: Path | None,
    *,
    dtype: str | None,
    pipeline: str | None = None,
    lora: bool = False,
    scores: Path | None = None,
    push_to: str | None = None,
    private: bool = False,
) -> None:
    """`align export`."""
    import tempfile

    from align.export import pipeline as exports
    from align.export import push
    from evaluate.precision import dtype_of

    if dtype is not None:
        dtype_of(dtype)
    if lora and pipeline:
        raise UserError("--lora and --pipeline write different things; choose one")
    if private and not push_to:
        raise UserError("--private belongs to --push-to-hub; add that, or leave it out")
    source = run / "checkpoint" if (run / "checkpoint").is_dir() else run
    if not source.is_dir():
        raise UserError(f"{run}: no such run; give the folder that 'align train' wrote")
    if output is None and push_to is None:
        raise UserError("nowhere to write to; add --output DIR or --push-to-hub OWNER/NAME")
    if output is not None and output.exists():
        raise UserError(f"{output}: already there; choose another --output")
    if push_to:
        push.check(push_to)
    with tempfile.TemporaryDirectory() as elsewhere:
        folder = output or Path(elsewhere) / "export"
        try:
            kept = exports.copy(
                source, folder, dtype=dtype, pipeline=pipeline, lora=lora, scores=scores, push_to=push_to
            )
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({error.strerror or error}); free some space or choose another --output"
            ) from None
        if output is not None:
            console.print(f"{output}: written in {kept}")
        if push_to:
            console.print(f"pushed to {push.push(folder, push_to, private=private)}")


def list_presets() -> None:
    """`align presets`."""
    from align.presets import load

    table, stages = Table("preset", "command", "what it is"), load.stages()
    for path in load.preset_files():
        table.add_row(path.stem, f"align {load.COMMANDS[stages[path.stem]]}", load.describe(path))
    printer().print(table)

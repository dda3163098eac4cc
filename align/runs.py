"""What the commands do: a run folder is made, filled, and never spoiled."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from rich.table import Table

from align import config as configs
from align.config import Config, RewardConfig, TrainConfig
from evaluate.console import console
from evaluate.files import replace
from prompts.errors import UserError

#: What may differ when a run goes on: nothing that changes what is computed up to a step.
FREE = {"steps", "save_every", "sample_every", "text_cache", "trackers"}
#: All that is in a run folder before the first step: `align` is what a tracker keeps there.
BEGINNING = {"config.yaml", "run.json", "samples", "align"}


def open_folder(config: Config, output: Path, *, resume: bool, preset: str | None = None) -> None:
    """Make `output` a run folder for `config`, or check that it is one already when resuming. preset: what `config` was made from."""
    path = output / "config.yaml"
    if resume:
        if not path.is_file():
            raise UserError(f"{output}: no run to resume there; leave out --resume to start one")
        old, new = configs.read_yaml(path), config.model_dump(mode="json")
        old, new = ({key: value for key, value in each.items() if key not in FREE} for each in (old, new))
        if changed := configs.difference(old, new):
            raise UserError(f"{path}: {changed}; resume with the old value, or start in another folder")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: already there; add --resume to go on with it, or choose another --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
        text = configs.dump(config)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            draft = output / ".config.yaml.partial"
            draft.write_text(text, encoding="utf-8")
            draft.replace(path)
        if preset:
            told = configs.read_run(output) | {"preset": preset}
            replace(output / "run.json", lambda draft: draft.write_text(json.dumps(told, indent=1), encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{output}: cannot be written to ({error.strerror}); choose another --output") from None


@contextmanager
def opened(config: Config, output: Path, *, resume: bool, preset: str | None = None) -> Iterator[None]:
    """Within: `open_folder`. An error before the first step undoes it, so that the corrected command finds the place as it was."""
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    open_folder(config, output, resume=resume, preset=preset)
    try:
        yield
    except BaseException:  # Ctrl-C as well, while models are loaded
        if not resume and _only_begun(output):
            _empty(output)
            for folder in made:
                with suppress(OSError):  # another run has found a place in it meanwhile
                    folder.rmdir()
        raise


def _only_begun(output: Path) -> bool:
    """Whether a run has left nothing there but its beginning: no step in its log, no state, nothing that is not known."""
    files = (path for path in output.rglob("*") if path.is_file() and path.stat().st_size)
    return all(path.relative_to(output).parts[0] in BEGINNING for path in files)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def train(config: TrainConfig, output: Path, *, resume: bool, preset: str | None = None) -> bool:
    """`align train`."""
    import torch
    from accelerate import PartialState

    from align.export import describe
    from align.report import report
    from align.train import train as loop

    process = PartialState(cpu=not torch.cuda.is_available())
    main = process.is_main_process
    if main and torch.cuda.is_available() and not resume:
        check_memory(config, processes=process.num_processes, available=torch.cuda.mem_get_info(process.device)[0])
    with opened(config, output, resume=resume, preset=preset) if main else nullcontext():
        process.wait_for_everyone()
        finished = loop(config, output, resume=resume)
    if finished and main and config.report:
        report(config, output)
        describe(config, output)  # once more, with scores
    return finished


def check_memory(config: TrainConfig, *, processes: int, available: int) -> None:
    """Raise UserError where a run needs more than `available` bytes; where that cannot be estimated, say so and go on."""
    from align import memory

    try:
        memory.check(config, processes=processes, available=available)
    except UserError:
        raise
    except Exception as error:  # of libraries that do not know tensors without numbers: no reason to refuse a run
        console.print(
            f"the memory this run needs could not be estimated ({type(error).__name__}); training starts all the same"
        )


def dry_run(config: TrainConfig, *, processes: int | None, gpu_memory: float | None) -> None:
    """`align train --dry-run`: what is trained, and what it needs of a GPU's memory, on stderr; stdout is the config's.

    gpu_memory: GiB; by default the GPU's at hand, and where there is none, no limit. Raises UserError where it cannot fit.
    """
    import torch

    from align import memory

    n = processes or int(os.environ.get("WORLD_SIZE", "1"))
    limit = math.inf
    if gpu_memory is not None:
        limit = gpu_memory * memory.GIB
    elif torch.cuda.is_available():
        limit = torch.cuda.mem_get_info()[0]
    memory.show(memory.check(config, processes=n, available=limit), processes=n)


def pretrain(config: Config, output: Path, *, resume: bool) -> bool:
    """`align pretrain`."""
    from align.pretrain import run

    with opened(config, output, resume=resume):
        return run(config, output, resume=resume)


def reward(config: RewardConfig, pairs: Path, output: Path, *, resume: bool) -> bool:
    """`align reward`."""
    from align.reward_model import read_pairs
    from align.reward_model import train as fit

    data = read_pairs(pairs)
    with opened(config, output, resume=resume):
        return fit(config, data, output, resume=resume)


def sample(checkpoint: str, prompts: Sequence[str], output: Path, *, n: int, seed: int) -> None:
    """`align sample`."""
    import torch

    from align.monitor import save_grid
    from evaluate import pipelines

    if output.suffix.lower() != ".png":
        raise UserError(f"--output {output}: pictures are written as PNG; give it a name ending in .png")
    pipeline, how = pipelines.load(checkpoint), pipelines.recipe(checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    each = [prompt for prompt in prompts for _ in range(n)]
    keys = [f"{prompt}/{i}" for prompt in prompts for i in range(n)]
    pictures = pipelines.draw(pipeline.to(device), how, each, seed=seed, keys=keys).cpu()
    try:
        save_grid(pictures, output, columns=n)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); choose another") from None
    console.print(f"{output}: {len(prompts)} x {n} pictures of {checkpoint}, seed {seed}")


def export(
    run: Path,
    output: Path | None,
    *,
    dtype: str,
    pipeline: str | None = None,
    lora: bool = False,
    scores: Path | None = None,
    push_to: str | None = None,
    private: bool = False,
) -> None:
    """`align export`."""
    import tempfile

    from align import export as exports
    from align import push

    if dtype not in exports.DTYPES:
        raise UserError(f"--dtype {dtype}: unknown; choose {', '.join(exports.DTYPES)}")
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
    with tempfile.TemporaryDirectory() as kept:
        folder = output or Path(kept) / "export"
        try:
            exports.copy(source, folder, dtype=dtype, pipeline=pipeline, lora=lora, scores=scores, push_to=push_to)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({error.strerror or error}); free some space or choose another --output"
            ) from None
        if output is not None:
            console.print(f"{output}: written in {dtype}")
        if push_to:
            console.print(f"pushed to {push.push(folder, push_to, private=private)}")


def list_presets() -> None:
    """`align presets`."""
    table = Table("preset", "command", "what it is")
    contents = configs.presets()
    for path in configs.preset_files():
        table.add_row(path.stem, f"align {configs.command(contents[path.stem]['stage'])}", configs.describe(path))
    console.print(table)

"""How long a model takes to draw, stage by stage, and how much memory at most.

A stage is what its modules' forwards take, by hooks on a stock pipeline: `text` the text encoders, `denoiser`
the UNet or transformer in all steps, `vae` the decoder; `other` is the rest of the call. On a GPU, CUDA
events; on a CPU, the wall clock.
"""

import json
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from torch import Tensor, nn

from evaluate import environment, layouts, pipelines, samplers
from evaluate.pipelines import fast
from evaluate.pipelines.random_init import random_pipeline
from evaluate.pipelines.recipe import Recipe
from evaluate.precision import dtype_of
from evaluate.results.csv_io import read_csv, write_csv
from prompts.io import hub
from prompts.io.errors import UserError

#: Calls that are not counted: memory is claimed and kernels are chosen in them.
WARMUP = 2
#: Seconds are given for this many images, as papers give them.
IMAGES = 10
PROMPT = "a small red circle left of a large blue square on a white background"


class Clock:
    """Marks on a device's own time line, and the seconds between two of them."""

    def __init__(self, device: torch.device):
        self.device, self.cuda = device, device.type == "cuda"

    def mark(self) -> Any:
        """Now; on a GPU, when it has come so far in its queue."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, first: Any, last: Any) -> float:
        """From one mark to another."""
        if not self.cuda:
            return float(last - first)
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000


class Spread(NamedTuple):
    """Median, least and most seconds of several calls."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, seconds: list[float]) -> "Spread":
        """Of one value per call."""
        return cls(statistics.median(seconds), min(seconds), max(seconds))


def time_call(
    call: Callable[[], object], *, device: str | torch.device = "cpu", repeats: int = 5, warmup: int = WARMUP
) -> Spread:
    """Seconds of `call()`, which does its work on `device`, after `warmup` calls that are not counted."""
    clock = Clock(torch.device(device))
    seconds = []
    for _ in range(warmup + repeats):
        first = clock.mark()
        call()
        seconds.append(clock.seconds(first, clock.mark()))
    return Spread.of(seconds[warmup:])


# ---- stages of a pipeline --------------------------------------------------------------------------------------------


def stages(pipeline: Any) -> dict[str, list[nn.Module]]:
    """The modules of each stage.

    The pipeline calls `vae.decode`, which is no forward, but what it spends its time in is.
    """
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    return {
        "text": [part for name, part in parts.items() if name.startswith("text_encoder")],
        "denoiser": [parts[name] for name in ("unet", "transformer") if name in parts],
        "vae": [parts["vae"].get_submodule("decoder")] if "vae" in parts else [],
    }


@contextmanager
def watched(modules: dict[str, list[nn.Module]], clock: Clock) -> Iterator[dict[str, list[tuple[Any, Any]]]]:
    """Collect the pair of marks around every forward of the modules, by stage."""
    spans: dict[str, list[tuple[Any, Any]]] = {stage: [] for stage in modules}
    with ExitStack() as stack:
        for stage, members in modules.items():
            begun: list[Any] = []
            for module in members:
                before = module.register_forward_pre_hook(lambda *_, begun=begun: begun.append(clock.mark()))
                after = module.register_forward_hook(
                    lambda *_, begun=begun, stage=stage: spans[stage].append((begun.pop(), clock.mark()))
                )
                stack.callback(before.remove)
                stack.callback(after.remove)
        yield spans


@dataclass(frozen=True)
class Timing:
    """Seconds for IMAGES images, medians over calls of `batch` images (`least`, `most`: of the total), and peak memory.

    peak_mib: on a GPU what torch held at most while drawing; on a CPU what the process held at
    most, Python and loading included.
    """

    total: float
    least: float
    most: float
    text: float
    denoiser: float
    vae: float
    other: float
    peak_mib: float


@torch.no_grad()
def time_pipeline(pipeline: Any, recipe: Recipe, *, batch: int, repeats: int, prompt: str = PROMPT) -> Timing:
    """Draw `batch` images WARMUP + `repeats` times and time the last `repeats`."""

    def draw() -> Tensor:
        if recipe.sampler:
            keys = [str(i) for i in range(batch)]
            return samplers.make(recipe).draw(pipeline, recipe, [prompt] * batch, seeds=[0] * batch, keys=keys)
        images: Tensor = pipeline(prompt=[prompt] * batch, output_type="pt", **recipe.call()).images
        return images

    clock = Clock(torch.device(pipeline.device))
    modules = stages(pipeline)
    calls: list[dict[str, float]] = []
    for number in range(WARMUP + repeats):
        if number == WARMUP and clock.cuda:
            torch.cuda.reset_peak_memory_stats(clock.device)
        with watched(modules, clock) as spans:
            first = clock.mark()
            draw().cpu()
            last = clock.mark()
        seconds = {stage: sum(clock.seconds(*span) for span in marks) for stage, marks in spans.items()}
        total = clock.seconds(first, last)
        calls.append({"total": total, **seconds, "other": total - sum(seconds.values())})
    scaled = {name: [IMAGES / batch * call[name] for call in calls[WARMUP:]] for name in calls[0]}
    medians = {name: statistics.median(values) for name, values in scaled.items()}
    return Timing(**medians, least=min(scaled["total"]), most=max(scaled["total"]), peak_mib=peak_mib(clock.device))


def peak_mib(device: torch.device) -> float:
    """Memory held at most, in MiB: on a GPU by torch since the last reset, else by this program since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the program that started this one held
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    # macOS counts bytes, others KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10)


# ---- the command -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TimingSettings:
    """What `evaluate time` is asked for."""

    model: str
    random_weights: bool
    device: str
    dtype: str
    batch: int
    repeats: int
    compiled: bool = False
    channels_last: bool = False

    @property
    def command(self) -> str:
        """What makes the row again."""
        words = ["evaluate", "time", "--model", self.model, *(["--random-weights"] if self.random_weights else [])]
        words += [
            "--device",
            self.device,
            "--dtype",
            self.dtype,
            "--batch",
            str(self.batch),
            "--repeats",
            str(self.repeats),
            *(["--compile"] if self.compiled else []),
            *(["--channels-last"] if self.channels_last else []),
        ]
        return hub.redact(shlex.join(words))


def measure(settings: TimingSettings) -> dict[str, Any]:
    """The row of `timings.csv`: seconds for IMAGES images, in all and by stage."""
    dtype = dtype_of(settings.dtype)
    environment.device_of(settings.device)
    with layouts.first() if settings.random_weights else nullcontext():
        recipe = pipelines.read_recipe(settings.model)
        if settings.random_weights:
            pipeline = random_pipeline(settings.model, dtype=dtype, device=settings.device)
        else:
            pipeline = pipelines.load(settings.model, dtype=dtype)
    pipeline.to(settings.device)
    fast.tune(pipeline, compiled=settings.compiled, channels_last=settings.channels_last)
    timing = time_pipeline(pipeline, recipe, batch=settings.batch, repeats=settings.repeats)
    seconds = {f"{name}_s": value for name, value in asdict(timing).items() if name != "peak_mib"}
    return {
        "model": settings.model,
        "weights": "random" if settings.random_weights else "its own",
        "recipe": json.dumps(recipe.record(), sort_keys=True),
        "images": IMAGES,
        **seconds,
        "peak_mib": timing.peak_mib,
        "dtype": settings.dtype,
        "compiled": settings.compiled,
        "channels_last": settings.channels_last,
        "batch": settings.batch,
        "repeats": settings.repeats,
        "warmup": WARMUP,
        "hardware": environment.hardware(settings.device),
        "versions": environment.versions("onestep-align", "torch", "diffusers", "transformers"),
        "command": settings.command,
    }


STAGES = tuple(field.name for field in fields(Timing) if field.name != "peak_mib")
#: Of a row, which `measure` makes.
COLUMNS = (
    "model", "weights", "recipe", "images", *(f"{name}_s" for name in STAGES), "peak_mib", "dtype", "compiled",
    "channels_last", "batch", "repeats", "warmup", "hardware", "versions", "command",
)  # fmt: skip
#: What tells rows apart: the same command on the same hardware with the same versions replaces its row.
KEY = ("command", "hardware", "versions")


def rows_of(path: Path, columns: Sequence[str] = COLUMNS) -> list[dict[str, str]]:
    """A CSV file's rows, none where there is no file. Raises UserError where a row of these columns does not belong."""
    rows = read_csv(path) if path.is_file() else []
    if rows and [*rows[0]] != [*columns]:
        raise UserError(f"{path}: other columns than those of this version; move it away")
    return rows


def record(row: dict[str, Any], path: Path, key: Sequence[str] = KEY) -> None:
    """Put a row into a CSV file, in place of the one with the same values under `key`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        rows = rows_of(path, list(row))
        text = {name: str(value) for name, value in row.items()}
        kept: list[dict[str, str]] = [old for old in rows if any(old[name] != text[name] for name in key)]
        write_csv([*kept, text], path)


def show(row: dict[str, Any]) -> None:
    """Print the row."""
    from rich.table import Table

    from evaluate.console import printer

    table = Table(
        title=f"{row['model']}, weights {row['weights']}, {row['dtype']}: {row['hardware']}",
        caption=f"medians of {row['repeats']} calls of {row['batch']} images, after {WARMUP} that are not counted",
    )
    table.add_column("stage")
    for column in (f"s / {IMAGES} images", "share"):
        table.add_column(column, justify="right")
    for stage in ("text", "denoiser", "vae", "other", "total"):
        seconds = row[f"{stage}_s"]
        table.add_row(stage, f"{seconds:.4f}", f"{seconds / row['total_s']:.0%}")
    console = printer()
    console.print(table)
    console.print(f"total {row['least_s']:.4f} to {row['most_s']:.4f} s, peak memory {row['peak_mib']:.0f} MiB")

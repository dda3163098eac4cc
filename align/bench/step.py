"""What a training step costs: time, images per second, peak memory and share of the processor's rate, by
gradient mode and storage of roles.

Trainer and plain implementation run in processes of their own, so that each one's peak memory is its own, and by turns,
so that what else a machine does falls on both.
"""

import importlib
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.table import Table

from align.config.methods import METHODS
from align.config.train import TrainConfig
from align.training.process import DTYPES
from evaluate import environment, layouts
from evaluate.bench import timing
from evaluate.console import console
from prompts.io import hub
from prompts.io.errors import UserError
from prompts.io.files import text_sha256, write_json
from prompts.io.validate import validate
from prompts.io.yaml import read_yaml

#: What is measured: implementation, roles, gradient. The plain one has no sequential form.
MODES = [
    ("trainer", storage, gradient)
    for storage in ("full", "lora")
    for gradient in ("exact", "exact_sequential", "detached")
]
PLAIN = [("plain", "full", gradient) for gradient in ("exact", "detached")]
LORA = {"rank": 8, "alpha": 8.0}  # where the preset has none
#: Imported before memory is counted.
LIBRARIES = (
    "accelerate", "align.memory.estimate", "align.bench.plain", "align.training.loop", "diffusers", "pandas", "peft",
    "pyarrow.dataset", "transformers",
)  # fmt: skip
#: What tells rows of `training.csv` apart.
KEY = (*timing.KEY, "implementation", "roles", "gradient")
METRICS = ("step_s", "peak_mib", "held_mib", "tflops")
UNTIMED = 2  # first steps, in which memory is claimed and kernels are chosen
PROMPTS = "\n".join(f"image {number} of a circle" for number in range(64))  # padded, so any do


def bench(
    config: TrainConfig,
    preset: str,
    *,
    sets: Sequence[str],
    steps: int,
    rounds: int,
    random_weights: bool,
    plain: bool,
    roles: Sequence[str],
    gradients: Sequence[str],
    output: Path | None,
    leaderboards: Path | None,
    counted: Path | None = None,
) -> None:
    """Measure each combination, print a table, and write JSON, and rows of `training.csv`.

    rounds: times that every combination is measured, by turns; figures are medians. random_weights: drawn in place of
    the preset's, of which then only configs and tokenizers are needed. plain: `align.bench.plain` too. roles,
    gradients: what alone is measured, all if empty. counted: operations that `--count` wrote, not counted again.
    """
    check_method(config, preset)
    known = read_operations(counted, preset, config) if counted else {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    words = ["align", "bench", preset, *repeated("--set", sets), "--steps", str(steps)]
    words += [*repeated("--roles", roles), *repeated("--gradient", gradients)]
    words += ["--rounds", str(rounds)] if rounds > 1 else []
    words += [*(["--random-weights"] if random_weights else []), *(["--plain"] if plain else [])]
    rate = matrix_rate(device, config.precision)
    common: dict[str, Any] = {
        "preset": preset,
        "weights": "random" if random_weights else "its own",
        **counted_for(config),
        "compile": config.compile,
        "precision": config.precision,
        "hardware": environment.hardware(device),
        "matrix_tflops": rate / 1e12,
        "timed_steps": steps,
        "rounds": rounds,
        "versions": environment.versions("onestep-align", "torch", "diffusers", "transformers"),
        "command": hub.redact(shlex.join(words)),
    }
    modes = chosen(roles, gradients, plain=plain)
    measured: dict[tuple[str, str, str], list[dict[str, Any]]] = {mode: [] for mode in modes}
    for number in range(rounds):
        for mode in modes[:: -1 if number % 2 else 1]:
            implementation, storage, gradient = mode
            console.print(", ".join((*mode, *([f"{number + 1} of {rounds}"] if rounds > 1 else []))) + " ...")
            content = alone(config, storage, gradient, steps + UNTIMED)
            # Operations are the same in every round, and counting them may take minutes.
            options = {"random_weights": random_weights, "plain": implementation == "plain"}
            options["count"] = number == 0 and mode not in known
            measured[mode].append(_measure(content, **options))
    for mode in set(known) & set(measured):
        measured[mode][0]["tflops"] = known[mode]
    rows = [_row(config, mode, each, common) for mode, each in measured.items()]
    show(rows, f"{preset}, batch {config.batch_size}, {config.precision}: {common['hardware']}")
    _keep(rows, output, leaderboards)


def read_operations(path: Path, preset: str, config: TrainConfig) -> dict[tuple[str, str, str], float]:
    """Tflop of a step by implementation, roles and gradient, from what `align bench PRESET --count` wrote.

    Raises UserError for another file, and for another preset or batch.
    """
    wanted = {"preset": preset, **counted_for(config)}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        others = {name: row[name] for row in rows for name, value in wanted.items() if row[name] != value}
        operations = {
            (row["implementation"], row["roles"], row["gradient"]): row["tflop_per_image_in_all"] * config.batch_size
            for row in rows
        }
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not what 'align bench --count --output' writes; name such a file") from None
    if others:
        name, value = next(iter(others.items()))
        raise UserError(f"{path}: counted for {name} {value}, and here it is {wanted[name]}; count it again")
    return operations


def counted_for(config: TrainConfig) -> dict[str, Any]:
    """Of a config, what a count of operations is told apart by."""
    model = config.model_dump(
        mode="json",
        include={
            "family",
            "reference",
            "pipeline",
            "initial",
            "size",
            "lora",
            "generator",
            "method",
            "guidance",
            "rewards",
        },
    )
    # What came later, and changes operations only where it is set: so that older counts stay what they are.
    later: Any = {"terms": True, "critics": True, "text_encoding": True, "assistant": {"shares_images"}}
    new = config.model_dump(mode="json", include=later, exclude_defaults=True)
    model |= {name: value for name, value in new.items() if value}
    return {
        "config": text_sha256(json.dumps(model, sort_keys=True))[:12],
        "batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "gradient_checkpointing": config.gradient_checkpointing,
        "reward_vae": config.reward_vae,
        "assistant_updates": config.assistant.updates,
    }


def check_method(config: TrainConfig, preset: str) -> None:
    """Raise UserError where a method has one gradient only."""
    if not METHODS[config.method].of_scores:
        raise UserError(
            f"preset {preset}: its method {config.method} has no gradient modes to compare; choose a preset of"
            f" {' or '.join(name for name, method in METHODS.items() if method.of_scores)}"
        )


def repeated(option: str, values: Sequence[str]) -> list[str]:
    """The words of an option that is given once for each value."""
    return [word for value in values for word in (option, value)]


def chosen(roles: Sequence[str], gradients: Sequence[str], *, plain: bool) -> list[tuple[str, str, str]]:
    """The combinations that are asked for. Raises UserError where none is left."""
    modes = [
        mode
        for mode in MODES + (PLAIN if plain else [])
        if (not roles or mode[1] in roles) and (not gradients or mode[2] in gradients)
    ]
    known = {storage for _, storage, _ in MODES}, {gradient for _, _, gradient in MODES}
    if not modes or set(roles) - known[0] or set(gradients) - known[1]:
        raise UserError(
            "bench: nothing is left to measure; --roles are full and lora, --gradient is exact, exact_sequential or"
            " detached"
        )
    return modes


def _row(
    config: TrainConfig, mode: tuple[str, str, str], rounds: Sequence[dict[str, Any]], common: dict[str, Any]
) -> dict[str, Any]:
    """A combination's row: medians over its rounds, or None where it did not fit."""
    row: dict[str, Any] = dict.fromkeys((*METRICS, "images_per_second", "share"))
    if all(each["step_s"] for each in rounds):
        row |= {name: statistics.median(each[name] for each in rounds if each[name] is not None) for name in METRICS}
        row["images_per_second"] = config.batch_size / row["step_s"]
        row["share"] = row["tflops"] / row["step_s"] / common["matrix_tflops"]
    return dict(zip(("implementation", "roles", "gradient"), mode, strict=True)) | row | common


def _keep(rows: Sequence[dict[str, Any]], output: Path | None, leaderboards: Path | None) -> None:
    """JSON into `output`, rows into `leaderboards`; where neither is given, JSON to stdout."""
    if output or not leaderboards:
        write(rows, output)
    if leaderboards:
        for row in rows:
            timing.record(row, leaderboards / "training.csv", KEY)


def write(rows: Sequence[dict[str, Any]], output: Path | None) -> None:
    """Rows as JSON, to stdout where no file is named."""
    if output:
        write_json(output, {"rows": rows})
    else:
        print(json.dumps({"rows": rows}, indent=1))


def alone(config: TrainConfig, storage: str, gradient: str, steps: int) -> dict[str, Any]:
    """The config of a run that does nothing but `steps` steps."""
    content = config.model_dump(mode="json") | {"steps": steps, "final_comparison": {"prompts": 0}, "parallel": "ddp"}
    content["lora"] = content["lora"] or LORA if storage == "lora" else None
    content["divergence"]["gradient"] = gradient
    content["assistant"]["warmup"] = 0
    return content | {"save_every": 10**6, "sample_every": 0, "held_out": {"scorers": {}}, "trackers": []}


def show(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print the rows, on stderr."""
    table = Table(
        title=title, caption=f"share: of {rows[0]['matrix_tflops']:.3g} Tflop/s, which one matrix product reaches"
    )
    for column in ("", "roles", "gradient", "s / step", "images / s", "peak MiB", "above imports", "share"):
        table.add_column(
            column, justify="left" if column in ("", "roles", "gradient") else "right", no_wrap=column == "s / step"
        )
    for row in rows:
        metrics = ("does not fit", "", "", "", "")
        if row["step_s"]:
            metrics = (
                f"{row['step_s']:.3f}",
                f"{row['images_per_second']:.2f}",
                f"{row['peak_mib']:.0f}",
                f"{row['held_mib']:.0f}",
                f"{row['share']:.0%}",
            )
        table.add_row(row["implementation"], row["roles"], row["gradient"], *metrics)
    console.print(table)
    measured = {(row["implementation"], row["roles"], row["gradient"]): row for row in rows if row["step_s"]}
    for (implementation, *mode), row in measured.items():
        trainer = measured.get(("trainer", *mode))
        if implementation == "plain" and trainer:
            time, memory = trainer["step_s"] / row["step_s"], trainer["held_mib"] / row["held_mib"]
            console.print(f"{mode[-1]}: {time:.3f} of the plain implementation's time, {memory:.3f} of its memory")


def matrix_rate(device: str, precision: str, size: int | None = None) -> float:
    """Flop/s that one matrix product of `size` x `size`, a large one, reaches on `device`,
    in what the networks compute in.
    """
    size = size or (8192 if device == "cuda" else 2048)
    a, b = torch.randn(2, size, size, device=device, dtype=DTYPES[precision])
    return float(2 * size**3 / timing.time_call(lambda: a @ b, device=device).least)


def _measure(content: dict[str, Any], **options: bool) -> dict[str, Any]:
    """One combination in a fresh process. Figures are None where it does not fit into
    the memory. options: of `_run`.
    """
    with tempfile.TemporaryDirectory() as folder:
        if options["random_weights"]:
            (Path(folder) / "prompts.txt").write_text(PROMPTS)
            content = content | {"prompts": f"{folder}/prompts.txt"}
            content["text_cache"] = f"{folder}/texts" if content["text_encoding"] == "ahead" else None
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(content))
        words = [sys.executable, "-m", "align.bench.step", str(path), json.dumps(options)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise UserError(f"bench: a run failed ({hub.redact(reason)}); try a smaller batch_size with --set")
        measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        for repo in measured.pop("layouts"):
            layouts.say(repo)
        return measured


# ---- in the process of its own ---------------------------------------------------------------------------------------


def _run(path: Path, *, random_weights: bool, plain: bool, count: bool = True) -> None:
    """Print the figures of one combination. count: its operations too."""
    config = validate(TrainConfig, read_yaml(path), str(path))
    metrics: dict[str, float | None] = dict.fromkeys(METRICS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in LIBRARIES:
        importlib.import_module(name)
    imported = timing.peak_mib(device)
    measured = _plain if plain else _trainer
    try:
        with layouts.first() if random_weights else nullcontext():
            times, peak, flops = measured(config, device, path.parent, random_weights=random_weights)
            metrics = {
                "step_s": statistics.median(times),
                "peak_mib": peak,
                "held_mib": peak - imported,
                "tflops": flops() / 1e12 if count else None,
            }
    except torch.OutOfMemoryError:
        pass
    print(json.dumps(metrics | {"layouts": sorted(layouts.used)}))


def _trainer(
    config: TrainConfig, device: torch.device, folder: Path, *, random_weights: bool
) -> tuple[list[float], float, Callable[[], float]]:
    """Seconds of each step, MiB at most, and what counts a step's matrix operations: the estimate, which
    carries one out on fake tensors.
    """
    from align.memory import estimate as memory
    from align.objectives.metrics import Metrics
    from align.training import setup
    from align.training.loop import update_critics, update_student
    from align.training.process import Launched

    run = setup.build(config, folder, Launched(config, folder), show=False, random_weights=random_weights)
    run.batches.numbered = False  # so it is counted

    def step(k: int) -> None:
        metrics = Metrics()
        update_student(run, k, metrics, update_critics(run, k, metrics))
        run.process.mean(metrics)  # as a run does, to log them

    seconds = _seconds(step, config.steps, device)
    return seconds, timing.peak_mib(device), lambda: memory.estimate(config, cuda=False).flops


def _plain(
    config: TrainConfig, device: torch.device, _: Path, *, random_weights: bool
) -> tuple[list[float], float, Callable[[], float]]:
    """The same of the plain implementation."""
    from align.bench import plain
    from align.memory import estimate as memory

    run = plain.build(config, device=device, random_weights=random_weights)
    run.batches.numbered = False
    seconds = _seconds(lambda k: plain.step(run, k), config.steps, device)
    peak = timing.peak_mib(device)

    def flops() -> float:
        return memory.estimate(plain.as_plain(config), cuda=False, implementation=plain.PLAIN).flops

    return seconds, peak, flops


def _seconds(step: Callable[[int], None], steps: int, device: torch.device) -> list[float]:
    """Of each of `steps` steps, less those that are not timed. The device is waited for."""
    seconds = []
    for k in range(steps):
        began = time.perf_counter()
        step(k)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds[UNTIMED:]


if __name__ == "__main__":
    _run(Path(sys.argv[1]), **json.loads(sys.argv[2]))

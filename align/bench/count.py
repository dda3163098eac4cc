"""What a step of a preset costs, counted without a GPU: one step at full size on fake tensors, for every gradient mode
and storage of roles beside the plain implementation.

Operations are those of matrix products, convolutions and attention, two for a multiplication with its addition; memory
is what tensors hold when they hold most. Both by phase of the step.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from align.bench import plain
from align.bench.step import alone, check_method, chosen, counted_for, repeated, write
from align.config.train import TrainConfig
from align.data.text_embeddings import ENCODING
from align.memory.estimate import GIB, Estimate, estimate
from evaluate import environment, layouts
from evaluate.console import AS_IT_IS, console
from prompts.io import hub
from prompts.io.errors import UserError
from prompts.io.validate import validate

Mode = tuple[str, str, str]

#: Phases in the order of a step, and what columns call them.
PHASES = {
    ENCODING: "texts",
    "critics' update": "assistant",
    "assistant's optimiser": "its optimiser",
    "student's forward": "forward",
    "student's divergence": "divergence",
    "student's guidance": "guidance",
    "student's reward": "reward",
    "student's backward": "backward",
    "student's optimiser": "its optimiser",
}


WIDTH = 132  # columns that the tables by phase need


def count(
    config: TrainConfig,
    preset: str,
    *,
    sets: Sequence[str],
    roles: Sequence[str],
    gradients: Sequence[str],
    output: Path | None,
) -> None:
    """Count each combination, print two tables, and write JSON. roles, gradients: what alone is counted, all if
    empty.
    """
    check_method(config, preset)
    words = ["align", "bench", preset, "--count", *repeated("--set", sets)]
    words += [*repeated("--roles", roles), *repeated("--gradient", gradients)]
    common: dict[str, Any] = {
        "preset": preset,
        **counted_for(config),
        "precision": config.precision,
        "versions": environment.versions("onestep-align", "torch", "diffusers", "transformers"),
        "command": hub.redact(shlex.join(words)),
    }
    rows = []
    for mode in chosen(roles, gradients, plain=True):
        console.print(f"{', '.join(mode)} ...")
        rows.append(dict(zip(("implementation", "roles", "gradient"), mode, strict=True)) | counted(config, mode))
    show(rows, f"{preset}, batch {config.batch_size}, {config.precision}")
    write([row | common for row in rows], output)


def check_untimed(options: Mapping[str, object]) -> None:
    """Raise UserError where one of these is given, which are of what is timed."""
    if given := [name for name, value in options.items() if value]:
        raise UserError(f"{given[0]}: --count times nothing, and has the plain one beside; leave it out")


def counted(config: TrainConfig, mode: Mode) -> dict[str, Any]:
    """One combination's operations per image of the batch and its memory, by phase.

    Weights are of no kind, so that layouts come before the hub.
    """
    implementation, storage, gradient = mode
    made = validate(TrainConfig, alone(config, storage, gradient, 1), "count")
    with layouts.first():
        if implementation == "plain":
            found = estimate(plain.as_plain(made), implementation=plain.PLAIN)
        else:
            found = estimate(made)
    return {
        "tflop_per_image": {phase: n / config.batch_size / 1e12 for phase, n in found.operations.items()},
        "tflop_per_image_in_all": found.flops / config.batch_size / 1e12,
        "peak_gib": _gib({phase: size for phase, size in found.phases.items() if phase in PHASES}),
        "peak_gib_in_all": _held(found),
        "peak_phase": found.phase,
        "peak_parts_gib": _gib(found.parts),
    }


def _gib(sizes: dict[str, float]) -> dict[str, float]:
    return {name: size / GIB for name, size in sizes.items() if size}


def _held(found: Estimate) -> float:
    return (found.total - found.reserve) / GIB


def show(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print all operations and memory beside the plain implementation's, then both by phase, on stderr."""
    baselines = {row["gradient"]: row for row in rows if row["implementation"] == "plain"}
    table = _table(title, ("Tflop / image", "of plain's", "GiB at most", "of plain's"))
    for row in rows:
        # The plain implementation has no sequential form, which computes what its exact one does.
        baseline = baselines.get(row["gradient"].removesuffix("_sequential"))
        cells = []
        for total in ("tflop_per_image_in_all", "peak_gib_in_all"):
            cells += [f"{row[total]:.4g}", f"{row[total] / baseline[total]:.3f}" if baseline else ""]
        table.add_row(*_names(row), *cells)
    console.print(table)
    wide = Console(stderr=True, width=max(console.width, WIDTH), **AS_IT_IS)
    for values, unit in (("tflop_per_image", "Tflop / image"), ("peak_gib", "GiB at most")):
        phases = [phase for phase in PHASES if any(phase in row[values] for row in rows)]
        table = _table(f"{title}: {unit} by phase", [PHASES[phase] for phase in phases])
        for row in rows:
            table.add_row(
                *_names(row), *(f"{row[values][phase]:.4g}" if phase in row[values] else "" for phase in phases)
            )
        wide.print(table)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table("", "roles", "gradient", title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _names(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["implementation"], row["roles"], row["gradient"]

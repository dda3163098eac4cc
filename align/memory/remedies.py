"""What fits: a run's estimate compared with a GPU, and changes that save memory."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from align.config.methods import METHODS
from align.config.overrides import place
from align.config.train import TrainConfig
from align.memory.estimate import GIB, Estimate, estimate
from evaluate import families, layouts
from evaluate.console import console
from prompts.io.errors import UserError
from prompts.io.validate import validate


def remedies(config: TrainConfig, processes: int) -> list[tuple[str, Any]]:
    """Changes that save memory, as `--set` takes them, in the order in which they are tried: what
    alters the result least comes first.
    """
    changes: list[tuple[str, Any]] = []
    if not config.gradient_checkpointing:
        changes.append(("gradient_checkpointing", True))
    micro = config.batch_size // processes
    if config.gradient_accumulation_steps < micro:
        changes.append(("gradient_accumulation_steps", micro))
    if METHODS[config.method].of_scores and config.divergence.gradient == "exact":
        changes.append(("divergence.gradient", "exact_sequential"))
    if processes > 1 and config.parallel == "ddp":
        changes.append(("parallel", "fsdp2"))
    tiny = families.load(config.family).tiny_vae
    if config.rewards and config.reward_vae is None and tiny:
        changes.append(("reward_vae", tiny))
    if config.lora is None:
        changes.append(("lora", {"rank": 64, "alpha": 64.0}))
    elif config.lora.rank > 16:
        lora = config.lora.model_dump(mode="json", exclude_none=True)
        changes.append(("lora", lora | {"rank": 16, "alpha": config.lora.alpha * 16 / config.lora.rank}))
    return changes


def changed(config: TrainConfig, changes: Sequence[tuple[str, Any]]) -> TrainConfig:
    """The config with `a.b` set to a value, one pair after the other."""
    content = config.model_dump(mode="json")
    for key, value in changes:
        content = place(content, key.split("."), value)
    return validate(TrainConfig, content, "memory")


@layouts.asked_once()
def check(config: TrainConfig, *, processes: int, available: float) -> Estimate:
    """The estimate, if it is at most `available` bytes; else a UserError that names the changes with which it would be.

    Remedies are added one after the other until it fits; if the last of them is enough by itself, it is named alone.
    """
    needed = estimate(config, processes=processes)
    if needed.total <= available:
        return needed
    largest = sorted(needed.parts, key=lambda part: -needed.parts[part])[:3]
    why = (
        f"memory: about {needed.total / GIB:.1f} GiB are needed and {available / GIB:.1f} GiB are there "
        f"({needed.phase}: {', '.join(f'{part} {needed.parts[part] / GIB:.1f}' for part in largest)} GiB)"
    )
    changes: list[tuple[str, Any]] = []
    least = needed.total
    for change in remedies(config, processes):
        try:
            total = estimate(changed(config, [*changes, change]), processes=processes).total
        except UserError:  # it does not go with the rest of the config
            continue
        if total < least:  # what does not help here is left out
            changes, least = [*changes, change], total
        if least <= available:
            alone = len(changes) > 1 and estimate(changed(config, changes[-1:]), processes=processes).total <= available
            options = " ".join(
                f"--set {shlex.quote(f'{key}={json.dumps(value).strip(chr(34))}')}"
                for key, value in (changes[-1:] if alone else changes)
            )
            remedy = f"{why}; add {options}, which needs about {least / GIB:.1f} GiB"
            if config.lora is None and any(key == "lora" for key, _ in changes):
                remedy += "; it learns at rates of its own (student and assistant's learning_rate), as presets with one"
            raise UserError(remedy)
    raise UserError(
        f"{why}; even with {', '.join(key for key, _ in changes) or 'all that saves memory'} it is {least / GIB:.1f}"
        " GiB: take a larger GPU, or more of them with parallel = fsdp2"
    )


def show(needed: Estimate, *, processes: int) -> None:
    """Print the roles, and the memory by part and by phase, on stderr."""
    from rich.table import Table

    table = Table("role", "parameters", "trained", "kept as", title="roles")
    for name, role in needed.roles.items():
        table.add_row(name, f"{role.parameters / 1e6:,.1f} M", f"{role.trainable / 1e6:,.1f} M", role.kept)
    console.print(table)
    each = "a GPU" if processes == 1 else f"each of {processes} GPUs"
    table = Table("part", "GiB", title=f"estimated memory of {each} at its peak: {needed.phase}")
    parts = {part: size for part, size in needed.parts.items() if size} | {
        "reserve: CUDA's context, kernels' workspaces": needed.reserve
    }
    for part, size in sorted(parts.items(), key=lambda item: -item[1]):
        table.add_row(part, f"{size / GIB:.2f}")
    table.add_section()
    table.add_row("in all", f"{needed.total / GIB:.2f}")
    table.add_section()
    table.add_row("beside it, to read networks: each process's CPU memory", f"{needed.load / GIB:.2f}")
    table.add_row("to write the checkpoint: the first process's", f"{needed.written / GIB:.2f}")
    if needed.state:
        table.add_row("to save a state: the first process's", f"{needed.state / GIB:.2f}")
    console.print(table)
    peaks = ", ".join(f"{phase} {(size + needed.reserve) / GIB:.2f}" for phase, size in needed.phases.items() if phase)
    console.print(f"most in each phase, in GiB: {peaks}")
    if needed.row:
        console.print(
            f"prompts encoded ahead: {needed.row / 1e6:.3g} MB of disk each, once for all runs of these prompts; text"
            f" encoders take {needed.encoding / GIB:.2f} GiB of the GPU meanwhile"
        )

"""Saving and resuming: a training state is either whole on disk or not there at all.

A state is a folder `step-N` of `.pt` files plus `manifest.json`, which holds every file's sha256. It is written under
another name, flushed, and renamed, so a kill at any moment loses at most the steps since the last save.
"""

import json
import os
import random
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from evaluate.weights import sha256
from prompts.errors import UserError

MANIFEST = "manifest.json"


class StateError(UserError):
    """A state that cannot be written or read, with what to do about it."""


def flush(path: Path) -> None:
    """Have a file or folder on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rng_state() -> dict[str, Any]:
    """The generators that layers draw from; what training itself draws is a function of seed and step."""
    return {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Undo `rng_state`."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def gather(value: Any, world: int) -> list[Any]:
    """`value` of every process, by rank."""
    if world == 1:
        return [value]
    everyone: list[Any] = [None] * world
    torch.distributed.all_gather_object(everyone, value)
    return everyone


def any_of(flag: bool, world: int) -> bool:
    """Whether `flag` is set in any process."""
    return any(gather(flag, world))


def save(folder: Path, step: int, parts: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Write `parts` (name -> anything `torch.load(weights_only=True)` reads back) as `folder/step-N`.

    Keeps the newest `keep` states. Raises StateError, and leaves earlier states alone, when the disk refuses.
    """
    target, draft = folder / f"step-{step}", folder / f".step-{step}.partial"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        digests = {}
        for name, part in parts.items():
            path = draft / f"{name}.pt"
            torch.save(part, path)
            flush(path)
            digests[path.name] = sha256(path)
        (draft / MANIFEST).write_text(json.dumps({"step": step, "sha256": digests}, indent=1))
        flush(draft / MANIFEST)
        flush(draft)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        flush(folder)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        shutil.rmtree(draft, ignore_errors=True)
        raise StateError(
            f"cannot save the state of step {step} to {folder}: {error}; free some space, then --resume"
        ) from error
    for old in steps(folder)[keep:]:
        shutil.rmtree(folder / f"step-{old}")
    return target


def steps(folder: Path) -> list[int]:
    """Steps that have a state in `folder`, newest first."""
    return sorted((int(p.name[5:]) for p in folder.glob("step-*") if p.name[5:].isdigit()), reverse=True)


def load(folder: Path, step: int, *, mapped: bool = False) -> dict[str, Any]:
    """Read `folder/step-N` back, onto the CPU, after checking every file against its hash. Raises StateError when it is torn.

    mapped: tensors stay in their files until they are used. Copy them, and keep none: the files are deleted in time.
    """
    target = folder / f"step-{step}"
    try:
        digests = json.loads((target / MANIFEST).read_text())["sha256"]
        torn = [name for name, digest in digests.items() if sha256(target / name) != digest]
    except (OSError, ValueError, KeyError) as error:
        raise StateError(f"{target} is not a whole state ({error}); delete it or resume from an older one") from error
    if torn:
        raise StateError(f"{target / torn[0]} does not match its hash; delete {target} or resume from an older one")
    return {name[:-3]: torch.load(target / name, map_location="cpu", weights_only=True, mmap=mapped) for name in digests}


def load_newest(folder: Path, *, mapped: bool = False) -> tuple[int, dict[str, Any]] | None:
    """The newest whole state of `folder` and its step, as `load` reads it, with a warning for every torn one skipped; None without any."""
    for step in steps(folder):
        try:
            return step, load(folder, step, mapped=mapped)
        except StateError as error:
            warnings.warn(f"skipping a torn state: {error}", stacklevel=2)
    return None

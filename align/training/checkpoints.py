"""Saving and resuming: a training state is either whole on disk or not there at all.

A state is a folder `step-N` of `.pt` files plus `manifest.json`, which holds every file's sha256. It is written under
another name, flushed, and renamed, so a kill at any moment loses at most the steps since the last save.
"""

import json
import random
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from align.networks import sharding
from evaluate.weights import sha256
from prompts.io.errors import UserError
from prompts.io.files import flush

MANIFEST = "manifest.json"


class StateError(UserError):
    """A state that cannot be written or read, with what to do about it."""


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
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])  # there may be fewer now


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
    """Read `folder/step-N` back, onto the CPU, after checking every file against its hash.
    Raises StateError when it is torn.

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
    return {
        name[:-3]: torch.load(target / name, map_location="cpu", weights_only=True, mmap=mapped) for name in digests
    }


def load_newest(folder: Path, *, mapped: bool = False) -> tuple[int, dict[str, Any]] | None:
    """The newest whole state of `folder` and its step, as `load` reads it, with a warning for every torn
    one skipped; None without any. Raises StateError where there are states, and none is whole.
    """
    for step in steps(folder):
        try:
            return step, load(folder, step, mapped=mapped)
        except StateError as error:
            warnings.warn(f"skipping a torn state: {error}", stacklevel=2)
    if steps(folder):
        raise StateError(f"{folder}: no state there is whole; start again in another folder, without --resume")
    return None


class Checkpoints:
    """A run's states: what is trained, its average and optimisers, the random state of every process,
    and the validation's baseline.
    """

    def __init__(
        self, folder: Path, *, every: int, learners: Mapping[str, Any], average: Any, validation: Any, process: Any
    ):
        self.folder, self.every, self.learners = folder / "state", every, learners
        self.average, self.validation, self.process = average, validation, process

    def restore(self) -> int:
        """Take the newest whole state up again and return its step; 0 where there is none yet.

        Raises StateError where a run that has ended has none any more: it would begin again, over what it had made.
        """
        newest = load_newest(self.folder, mapped=True)
        if newest is None:
            if (self.folder.parent / "checkpoint").exists():
                raise StateError(
                    f"{self.folder.parent}: this run has ended, and its states are gone; start another in a new folder,"
                    " with initial for where this one ended"
                )
            return 0
        step, saved = newest
        with torch.no_grad():
            for name, learner in self.learners.items():
                for key, value in (learner.parameters | learner.buffers).items():
                    value.copy_(sharding.like(saved[name][key], value))
        self.average.load_state_dict(saved["average"])
        for name, learner in self.learners.items():
            sharding.load_optimizer(learner.optimizer, saved["optimizers"][name], learner.parameters.values())
        self.validation.baseline = saved["baseline"]
        rank = self.process.rank
        set_rng_state(saved["rng"][rank] if rank < len(saved["rng"]) else saved["rng"][0])
        return step

    def save(self, step: int) -> None:
        """Write the state of `step`. Every process must call it."""
        rng = gather(rng_state(), self.process.world)
        whole = sharding.gathered(self.state())
        if self.process.main:
            save(self.folder, step, whole | {"rng": rng, "baseline": self.validation.baseline})
        self.process.wait()

    def save_if_due(self, step: int) -> None:
        """The same, every so many steps."""
        if step % self.every == 0:
            self.save(step)

    def state(self) -> dict[str, Any]:
        """The tensors of a state, sharded as they are."""
        parts = {
            name: {key: value.detach() for key, value in (each.parameters | each.buffers).items()}
            for name, each in self.learners.items()
        }
        optimizers = {name: learner.optimizer.state_dict() for name, learner in self.learners.items()}
        return parts | {"average": self.average.state_dict(), "optimizers": optimizers}

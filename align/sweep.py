"""Sweeps: every cell of an ablation trained with several seeds, each run in a process of its own, and measured.

A run is a folder `CELL/seed-N` of `align train`'s kind, with `measure.yaml` (what to measure) and at its end `result.json`. A run
that has a result is never run again; any other goes on from its newest state. One that diverged, or that its guard stopped, has a
result too, which says at which step and why.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock, Timeout

from align import config as configs
from align.config import CENTRE, TRAIN, Measure, SweepConfig, TrainConfig
from align.console import stop_on_signal
from align.runs import open_folder
from evaluate.console import Watch, console
from evaluate.files import replace
from prompts.errors import UserError

SEED = 20_000  # of the captions that are measured; of their noise it is `align.report.SEED`
CHUNK = 256  # pictures scored together
POLL = 0.5  # seconds


@dataclass(frozen=True, eq=False)
class Run:
    """One cell with one seed."""

    cell: str
    seed: int
    config: TrainConfig
    folder: Path

    @property
    def steps(self) -> int:
        """All it takes, warm-up included."""
        return self.config.assistant.warmup + self.config.steps

    @property
    def done(self) -> int:
        """Steps in its log."""
        with suppress(OSError):
            return min((self.folder / "log.jsonl").read_bytes().count(b"\n"), self.steps)
        return 0

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / "result.json").is_file()


def cells(config: SweepConfig) -> dict[str, TrainConfig]:
    """Every cell's training, the centre first. UserError for the first that cannot be trained, or a metric that is not known."""
    from evaluate import scorers, sets

    for name in config.measure.metrics:
        if scorers.resolve(name) != name and sets.resolve(name) != name:
            there = ", ".join([*scorers.variants(), *sets.variants()])
            raise UserError(f"measure.metrics: no metric {name!r}; there are {there}")
    presets = configs.presets()
    if presets.get(config.centre, {}).get("stage") not in TRAIN:
        raise UserError(f"centre = {config.centre}: no preset of 'align train'; 'align presets' lists them")
    base = configs.merge(TrainConfig, presets[config.centre], config.common)
    changes: dict[str, dict[str, Any]] = {CENTRE: {}, **config.cells}
    return {
        name: configs.validate(TrainConfig, configs.merge(TrainConfig, base, change), f"cell {name}")
        for name, change in changes.items()
    }


def plan(config: SweepConfig, output: Path) -> list[Run]:
    """All runs, seed by seed, so that what is finished early has every cell.

    Raises UserError where a run's folder holds another configuration: what is finished must be what would be run now.
    """
    trainings = cells(config)
    runs = [
        Run(cell, seed, training.model_copy(update={"seed": seed}), output / cell / f"seed-{seed}")
        for seed in range(config.seeds)
        for cell, training in trainings.items()
    ]
    for run in runs:
        for name, new in (("config.yaml", run.config), ("measure.yaml", config.measure)):
            path = run.folder / name
            if not path.is_file():
                continue
            if changed := configs.difference(configs.read_yaml(path), new.model_dump(mode="json")):
                raise UserError(f"{path}: {changed}; keep the old value, or choose another --output")
    return runs


def sweep(config: SweepConfig, output: Path, *, processes: int) -> bool:
    """Carry out every run that has no result yet. Returns whether all have one now (False: a signal stopped it).

    Raises UserError, all other runs being done, where runs failed for a reason other than the training itself.
    """
    runs = plan(config, output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with FileLock(output / ".lock", timeout=0):
            return _carry_out(config, runs, processes)
    except Timeout:
        raise UserError(f"{output}: another sweep is at work there; wait for it, or choose another --output") from None
    except OSError as error:
        raise UserError(f"{output}: cannot be written to ({error.strerror}); choose another --output") from None


def _carry_out(config: SweepConfig, runs: list[Run], processes: int) -> bool:
    waiting = [run for run in reversed(runs) if not run.finished]
    working: dict[Run, subprocess.Popen[bytes]] = {}
    failed: list[Run] = []
    told: set[Run] = set()
    ended = sum(run.steps for run in runs if run.finished)
    console.print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished before")
    with stop_on_signal() as stop, Watch("sweep", sum(run.steps for run in runs), start=ended) as watch:
        while working or (waiting and not stop):
            while waiting and not stop and len(working) < processes:
                run = waiting.pop()
                working[run] = _start(run, config.measure)
            for run, process in list(working.items()):
                if process.poll() is not None:
                    process.communicate()
                    del working[run]
                    ended += run.steps
                    if not run.finished and not stop:
                        failed.append(run)
                elif stop and run not in told:
                    process.terminate()  # once: a second signal would end it unsaved
                    told.add(run)
            finished = float(sum(run.finished for run in runs))
            watch(ended + sum(run.done for run in working), runs_finished=finished)
            time.sleep(POLL)
    if failed:
        lines = (failed[0].folder / "worker.log").read_text(encoding="utf-8").strip().splitlines()
        raise UserError(
            f"{failed[0].folder}: the run failed ({lines[-1] if lines else 'no output'}){f', and {len(failed) - 1} more' if failed[1:] else ''}; "
            "see worker.log there, then give the same command again"
        )
    return not stop


def _start(run: Run, measure: Measure) -> subprocess.Popen[bytes]:
    open_folder(run.config, run.folder, resume=(run.folder / "config.yaml").is_file())
    text = yaml.safe_dump(measure.model_dump(mode="json"), sort_keys=False)
    replace(run.folder / "measure.yaml", lambda draft: draft.write_text(text, encoding="utf-8"))
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with (run.folder / "worker.log").open("wb") as log:
        # In a session of its own: Ctrl-C reaches the sweep alone, which passes it on. The pipe tells the run that the sweep is dead.
        return subprocess.Popen(
            [sys.executable, "-m", "align.sweep", str(run.folder)],
            stdin=subprocess.PIPE, stdout=log, stderr=log, env=os.environ | one, start_new_session=True,
        )  # fmt: skip


def results(config: SweepConfig, output: Path) -> list[dict[str, Any]]:
    """The results of finished runs of this sweep. Raises UserError if there is none."""
    found = [
        json.loads((run.folder / "result.json").read_text(encoding="utf-8")) | {"cell": run.cell, "seed": run.seed}
        for run in plan(config, output)
        if run.finished
    ]
    if not found:
        raise UserError(f"{output}: no run is finished there; leave out --table to run them")
    return found


# ---- one run ---------------------------------------------------------------------------------------------------------------


def measure(model: str, options: Measure) -> dict[str, dict[str, float]] | None:
    """Every metric of a model: its value, and the pictures it is of. None where the model draws no finite pictures."""
    import torch

    from align.data import read_prompts
    from align.report import pictures_of
    from evaluate import scorers, sets

    listed = read_prompts(options.prompts)
    order = np.random.default_rng(SEED).permutation(len(listed))
    captions = [listed[i] for i in order[np.arange(options.captions) % len(listed)]]
    texts = captions * options.pictures
    pictures = pictures_of(model, texts, title="measuring")
    if not pictures.isfinite().all():
        return None
    loaded = {name: scorers.load(name) for name in options.metrics if scorers.resolve(name)}
    gathered = {name: sets.load(name) for name in options.metrics if name not in loaded}
    scores: dict[str, list[torch.Tensor]] = {name: [] for name in loaded}
    with torch.no_grad():
        for first in range(0, len(texts), CHUNK):
            some = slice(first, first + CHUNK)
            for name, score in scorers.score_all(loaded, pictures[some], texts[some]).items():
                scores[name].append(score.double())
            for metric in gathered.values():
                metric.update(pictures[some], texts[some])
    found = {name: {"value": torch.cat(parts).mean().item(), "n": len(texts)} for name, parts in scores.items()}
    estimates = {name: metric.compute() for name, metric in gathered.items()}
    return found | {name: {"value": estimate.value, "n": estimate.n} for name, estimate in estimates.items()}


def carry_out(folder: Path) -> bool:
    """Train and measure the run that `folder` was made for. Returns whether it has a result now."""
    from align.train import Guarded, Stopped, train

    began = time.process_time()
    config = configs.validate(TrainConfig, configs.read_yaml(folder / "config.yaml"), str(folder / "config.yaml"))
    options = configs.validate(Measure, configs.read_yaml(folder / "measure.yaml"), str(folder / "measure.yaml"))
    note = folder / "stopped.json"
    try:
        # A run that stopped itself must not go on from its last state when it is killed while it is measured.
        if not note.is_file() and not train(config, folder, resume=True, show=False):
            return False
    except Stopped as stop:
        why = str(stop).partition(";")[0]  # the remedy that follows is for a run by itself
        content = {"step": stop.step, "why": why, "by": "guard" if isinstance(stop, Guarded) else "divergence"}
        _write(note, content)
    stopped = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
    metrics = None
    if stopped is None or stopped["by"] == "guard":  # there is no checkpoint of a run that diverged
        metrics = measure(str(folder / "checkpoint"), options)
        if metrics is None:
            why = "the generator draws pictures that are not finite"
            stopped = {"step": config.assistant.warmup + config.steps, "why": why, "by": "divergence"}
    _write(folder / "result.json", {"stopped": stopped, "metrics": metrics, "cpu_seconds": time.process_time() - began})
    shutil.rmtree(folder / "state", ignore_errors=True)
    return True


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1) + "\n"
    replace(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, so that what a killed sweep leaves behind is not at work beside its successor."""
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written: it returns when the pipe's other end is gone
    os._exit(1)


def _main(folder: Path) -> int:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        return 0 if carry_out(folder) else 130
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))

"""Sweeps: every cell of an ablation trained with several seeds, each run in a process of its own, and
measured, baselines beside them.

A run is a folder `CELL/seed-N` of `align train`'s kind, with `measure.yaml` (what to measure) and at its end
`result.json`. A baseline is a folder `baselines/NAME`, with `baseline.yaml` in place of a training's configuration.
What has a result is never run again; any other run is resumed from its newest state. One that diverged, or that its
guard stopped, has a result too, which says at which step and why. Results can also be taken from a table that an
earlier sweep of the same configuration wrote, on this machine or another. Where what is measured has changed since, a
finished run can be measured again: its checkpoint is still there.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from align.ablation.config import CENTRE, WIN, Baseline, Measure, SweepConfig
from align.config.overrides import difference, merge
from align.config.train import TRAIN, TrainConfig
from align.options import Config
from align.presets.load import content_of
from align.run_folder import alone, open_folder
from align.training.interrupt import stop_on_signal
from evaluate import embedded
from evaluate.console import ProgressLog, console
from evaluate.results.csv_io import read_csv
from prompts.io.errors import UserError
from prompts.io.files import replace, text_sha256, write_json
from prompts.io.validate import validate
from prompts.io.yaml import read_yaml

BASELINE = "baseline.yaml"
EARLIER = "earlier.json"  # what a run came to and how that was measured, until it is measured again
LOG = "worker.log"
MEASURE = "measure.yaml"
WORLD = "world"  # a run's file: the digest of the world's weights that it was begun with
POLL = 0.5  # seconds
TOGETHER = 8  # runs that one process measures again: what it imports takes as long as one of them


@dataclass(frozen=True, eq=False)
class Trial:
    """One cell with one seed, or a baseline, which has none."""

    cell: str
    seed: int | None
    config: TrainConfig | Baseline
    folder: Path

    @property
    def steps(self) -> int:
        """All it takes, warm-up included."""
        return self.config.assistant.warmup + self.config.steps if isinstance(self.config, TrainConfig) else 0

    @property
    def file(self) -> Path:
        """Where its configuration is."""
        return self.folder / ("config.yaml" if isinstance(self.config, TrainConfig) else BASELINE)

    def identity(self, measure: Measure) -> str:
        """What tells whether a result is of this configuration, measured like this, and of the world's weights as they
        are now: twelve hexadecimal digits.
        """
        # Without what is not set: settings that a later version has leave it the same.
        content: list[Any] = [each.model_dump(mode="json", exclude_none=True) for each in (self.config, measure)]
        if isinstance(self.config, Baseline) and self.config.best_of > 1:
            content.append(next(iter(measure.metrics)))  # the reward chose its images
        return text_sha256(json.dumps([*content, embedded.digest()], sort_keys=True))[:12]

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

    @property
    def stopped(self) -> str | None:
        """Why a finished run ended before its last step, if it did."""
        stopped = self.result["stopped"] if self.finished else None
        return stopped["why"] if stopped else None

    @property
    def result(self) -> dict[str, Any]:
        """What a finished run came to."""
        content: dict[str, Any] = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        return content


#: What one process carries out.
Job = tuple[Trial, ...]


def cells(config: SweepConfig) -> dict[str, TrainConfig]:
    """Every cell's training, the centre first.

    UserError for the first that cannot be trained, or a metric that is not known.
    """
    from evaluate import distribution, scorers

    for metric in config.measure.metrics:
        name = metric.removeprefix(WIN)
        if scorers.resolve(name) != name and (name != metric or distribution.resolve(name) != name):
            available = ", ".join([*scorers.variants(), *distribution.variants()])
            raise UserError(f"measure.metrics: no metric {metric!r}; there are {available}; {WIN}SCORER takes a scorer")
    if not scorers.resolve(reward := next(iter(config.measure.metrics))):
        raise UserError(f"measure.metrics: the first is the reward, and {reward} is no scorer; put a scorer first")
    try:
        centre = content_of(config.centre, TRAIN)
    except UserError as error:
        raise UserError(f"centre: {error}") from None
    base = merge(TrainConfig, centre, config.common)
    changes: dict[str, dict[str, Any]] = {CENTRE: {}, **config.cells}
    contents = {name: merge(TrainConfig, base, change) for name, change in changes.items()}
    return {name: validate(TrainConfig, content, f"cell {name}") for name, content in contents.items()}


def plan(config: SweepConfig, output: Path, *, measure_again: bool = False) -> list[Trial]:
    """The baselines, and all runs seed by seed, so that what is finished early has every cell.

    Raises UserError where a run's folder holds another configuration, or was begun with other weights of the world, and
    where what is finished was measured otherwise: it must be what would be there now, or with `measure_again` what that
    can be made of.
    """
    trainings = cells(config)
    runs = [Trial(name, None, baseline, output / "baselines" / name) for name, baseline in config.baselines.items()]
    runs += [
        Trial(cell, seed, training.model_copy(update={"seed": seed}), output / cell / f"seed-{seed}")
        for seed in range(config.seeds)
        for cell, training in trainings.items()
        if seed < config.seeds_of.get(cell, config.seeds)
    ]
    for run in runs:
        _check(run, config.measure, measure_again=measure_again)
    return runs


def _check(run: Trial, measure: Measure, *, measure_again: bool) -> None:
    begun, world = run.file, run.folder / WORLD
    if not begun.is_file():
        return
    if changed := difference(read_yaml(begun), run.config.model_dump(mode="json")):
        raise UserError(f"{begun}: {changed}; keep the old value, or choose another --output")
    if world.is_file() and world.read_text(encoding="utf-8") != embedded.digest():
        raise UserError(
            f"{run.folder}: made with other weights of the world than there are now; choose another --output"
        )
    if not (changed := _measured_otherwise(run, measure)):
        return
    if not measure_again:
        remedy = "keep the old value, add --measure-again, or choose another --output"
        raise UserError(f"{run.folder / MEASURE}: {changed}; {remedy}")
    if isinstance(run.config, TrainConfig) and run.result["metrics"] and not (run.folder / "checkpoint").is_dir():
        raise UserError(
            f"{run.folder}: measured otherwise, and its checkpoint is not there any more; delete that folder, and it is"
            " trained again"
        )


def _measured_otherwise(run: Trial, measure: Measure) -> str | None:
    """How a finished run was measured otherwise than `measure`; None where it was not, or nothing is measured yet."""
    measured = run.folder / MEASURE
    if not run.finished or not measured.is_file():
        return None
    old, new = read_yaml(measured), measure.model_dump(mode="json")
    changed = difference(old, new)
    if not changed and isinstance(run.config, Baseline) and run.config.best_of > 1:
        first, now = (next(iter(each["metrics"])) for each in (old, new))
        changed = None if first == now else f"the reward, which chose its images, was {first} and is now {now}"
    return changed


def sweep(config: SweepConfig, output: Path, *, processes: int, measure_again: bool = False) -> bool:
    """Carry out every run that has no result yet. Returns whether all have one now (False: a signal stopped it).

    measure_again: also those whose result was measured otherwise, though not their training. Raises UserError, all
    other runs being done, where runs failed for a reason other than the training itself.
    """
    from align.ablation.measure import check

    runs = plan(config, output, measure_again=measure_again)
    outdated = [run for run in runs if _measured_otherwise(run, config.measure)] if measure_again else []
    if outdated or not all(run.finished for run in runs):
        check(config.measure, config.baselines)
    with alone(output):
        for run in outdated:
            write_json(run.folder / EARLIER, run.result | {"measure": read_yaml(run.folder / MEASURE)})
            (run.folder / "result.json").unlink()
        return _carry_out(config, runs, processes)


def _carry_out(config: SweepConfig, runs: list[Trial], processes: int) -> bool:
    waiting = _jobs([run for run in runs if not run.finished])[::-1]
    working: dict[Job, subprocess.Popen[bytes]] = {}
    failed: list[Trial] = []
    terminated: set[Job] = set()
    ended = sum(run.steps for run in runs if run.finished)
    console.print(f"{len(runs)} runs, {sum(run.finished for run in runs)} of them finished before")
    with stop_on_signal() as stop, ProgressLog("sweep", sum(run.steps for run in runs), start=ended) as progress:
        while working or (waiting and not stop):
            while waiting and not stop and len(working) < processes:
                job = waiting.pop()
                working[job] = _start(job, config.measure)
            for job, process in list(working.items()):
                if process.poll() is not None:
                    process.communicate()
                    del working[job]
                    ended += sum(run.steps for run in job)
                    failed += _told(job, stopped=bool(stop))
                elif stop and job not in terminated:
                    process.terminate()  # once: a second signal would end it unsaved
                    terminated.add(job)
            finished = float(sum(run.finished for run in runs))
            progress(ended + sum(run.done for job in working for run in job), runs_finished=finished)
            time.sleep(POLL)
    if failed:
        log = failed[0].folder / LOG
        lines = log.read_text(encoding="utf-8").strip().splitlines() if log.is_file() else []
        raise UserError(
            f"{failed[0].folder}: the run failed"
            f" ({lines[-1] if lines else 'no output'}){f', and {len(failed) - 1} more' if failed[1:] else ''}; see"
            f" {LOG} there, then give the same command again"
        )
    return not stop


def _jobs(runs: list[Trial]) -> list[Job]:
    """What a process does: a run by itself, or several that are measured again."""
    again = [run for run in runs if (run.folder / EARLIER).is_file()]
    others = [(run,) for run in runs if run not in again]
    return [tuple(again[i : i + TOGETHER]) for i in range(0, len(again), TOGETHER)] + others


def _told(job: Job, *, stopped: bool) -> list[Trial]:
    """Say what became of a process's runs that did not end as planned, and return those that failed. stopped: by a
    signal, of which nothing needs to be said.
    """
    for run in job:
        if why := run.stopped:
            console.print(f"{run.cell}, seed {run.seed}: {why}")
    failed = [run for run in job if not run.finished and not stopped]
    for run in failed:
        console.print(f"{run.folder}: failed; {LOG} there says why")
    return failed


def _start(job: Job, measure: Measure) -> subprocess.Popen[bytes]:
    for run in job:
        open_run(run, measure)
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with (job[0].folder / LOG).open("wb") as log:
        # In a session of its own: Ctrl-C reaches the sweep alone, which passes it on. The pipe tells
        # the run that the sweep is dead.
        return subprocess.Popen(
            [sys.executable, "-m", "align.ablation.sweep", *(str(run.folder) for run in job)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=os.environ | one,
            start_new_session=True,
        )


def open_run(run: Trial, measure: Measure) -> None:
    """A run's folder, with all that its process reads."""
    if isinstance(run.config, TrainConfig):
        open_folder(run.config, run.folder, resume=run.file.is_file())
    else:
        _write_yaml(run.file, run.config)
    _write_yaml(run.folder / MEASURE, measure)
    replace(run.folder / WORLD, lambda draft: draft.write_text(embedded.digest(), encoding="utf-8"))


def _write_yaml(path: Path, content: Config) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(content.model_dump(mode="json"), sort_keys=False)
    replace(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def take(config: SweepConfig, output: Path, table: Path) -> None:
    """Give every run that has no result yet the one that a table of this sweep, as `align.ablation.table.write`
    leaves it in the folder `table`, has of it.

    Raises UserError where the folder holds no such table, or one of another configuration.
    """
    from align.ablation.table import RUNS, result_of

    path = table / RUNS
    listed = read_csv(path)
    if any({"cell", "seed", "config"} - row.keys() for row in listed):
        raise UserError(f"{path}: not a sweep's table of this version; leave out --from")
    rows = {(row["cell"], row["seed"]): row for row in listed}
    runs = plan(config, output)
    taken = {run: row for run in runs if (row := rows.get((run.cell, "" if run.seed is None else str(run.seed))))}
    for run, row in taken.items():
        if row["config"] != run.identity(config.measure):
            raise UserError(
                f"{path}: {run.cell} was trained or measured by another configuration, or with other weights of the"
                " world, than this sweep's; leave out --from"
            )
    with alone(output):
        for run, row in taken.items():
            if not run.finished:
                open_run(run, config.measure)
                write_json(run.folder / "result.json", result_of(config, row))


def results(config: SweepConfig, output: Path) -> list[dict[str, Any]]:
    """The results of finished runs of this sweep. Raises UserError if there is none, and as `plan` does."""
    finished = [
        run.result | {"cell": run.cell, "seed": run.seed, "config": run.identity(config.measure)}
        for run in plan(config, output)
        if run.finished
    ]
    if not finished:
        raise UserError(f"{output}: no run is finished there; leave out --table to run them")
    return finished


# ---- one run ---------------------------------------------------------------------------------------------------------


def carry_out(folder: Path) -> bool:
    """Train and measure the run that `folder` was made for, or measure the baseline.

    Returns whether it has a result now.
    """
    from align.ablation.measure import measure, still_known

    options = validate(Measure, read_yaml(folder / MEASURE), str(folder / MEASURE))
    cache, earlier = folder.parent.parent / "over.json", _earlier(folder)
    known = still_known(earlier["metrics"], Measure.model_validate(earlier["measure"]), options) if earlier else {}
    stopped: dict[str, Any] | None = None
    seconds: float | None = 0.0
    measured: dict[str, Any] = {"metrics": None, "drawing_seconds": None}
    if (folder / BASELINE).is_file():
        baseline = validate(Baseline, read_yaml(folder / BASELINE), str(folder / BASELINE))
        measured = measure(baseline.model, options, baseline=baseline, cache=cache, known=known)
    else:
        ended, stopped, seconds = (
            (True, earlier["stopped"], earlier["training_seconds"]) if earlier else _trained(folder)
        )
        if not ended:
            return False
        if stopped is None or stopped["by"] == "guard":  # there is no checkpoint of a run that diverged
            measured = measure(str(folder / "checkpoint"), options, cache=cache, known=known)
            if measured["metrics"] is None:
                last = (folder / "log.jsonl").read_bytes().count(b"\n")
                stopped = {"step": last, "why": "the generator draws images that are not finite", "by": "divergence"}
    measured["drawing_seconds"] = earlier.get("drawing_seconds") or measured["drawing_seconds"]  # timed once
    write_json(folder / "result.json", {"stopped": stopped, **measured, "training_seconds": seconds})
    (folder / EARLIER).unlink(missing_ok=True)
    shutil.rmtree(folder / "state", ignore_errors=True)
    return True


def _earlier(folder: Path) -> dict[str, Any]:
    """What a run came to before it is measured again; empty where it is measured for the first time."""
    path = folder / EARLIER
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def _trained(folder: Path) -> tuple[bool, dict[str, Any] | None, float | None]:
    """Whether training has ended, why it stopped itself if it did, and its core-seconds, None
    where another process had begun it.
    """
    from align.training.health import Guarded, Stopped
    from align.training.loop import train

    config = validate(TrainConfig, read_yaml(folder / "config.yaml"), str(folder / "config.yaml"))
    note, began = folder / "stopped.json", time.process_time()
    whole = not (folder / "log.jsonl").is_file()
    try:
        # A run that stopped itself must not go on from its last state when it is killed while it is measured.
        if not note.is_file() and not train(config, folder, resume=True, show=False):
            return False, None, None
    except Stopped as stop:
        why = str(stop).partition(";")[0]  # the remedy that follows is for a run by itself
        write_json(note, {"step": stop.step, "why": why, "by": "guard" if isinstance(stop, Guarded) else "divergence"})
    stopped = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
    return True, stopped, time.process_time() - began if whole else None


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, so that what a killed sweep leaves behind is
    not at work beside its successor.
    """
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written: it returns when the pipe's other end is gone
    os._exit(1)


def _main(folders: Sequence[Path]) -> int:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    status = 0
    for number, folder in enumerate(folders):
        if number:
            _log_into(folder / LOG)
        try:
            if not carry_out(folder):
                return 130
        except UserError as error:
            print(error, file=sys.stderr, flush=True)
            status = 2
    return status


def _log_into(path: Path) -> None:
    """From here on this process writes there."""
    sys.stdout.flush()
    with path.open("wb") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)


if __name__ == "__main__":
    sys.exit(_main([Path(folder) for folder in sys.argv[1:]]))

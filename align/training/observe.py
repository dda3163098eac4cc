"""What happens between steps: numbers are checked and logged, the student is looked at,
states are saved, a run is stopped.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch

from align.objectives.metrics import Metrics
from align.training.checkpoints import any_of, gather
from align.training.health import Health
from align.training.interrupt import Stop
from align.training.log import trim_log
from align.training.setup import Run
from evaluate.console import ProgressLog, console

SHOWN = ("reward", "reward_ratio", "divergence", "assistant")


class Observer:
    """Watches a run from its first step.

    stopped: whether it is to end now; guarded: why the guard stopped it, if it did.
    """

    def __init__(self, run: Run, start: int, *, show: bool):
        """start: the step that a resumed run starts from. show: progress."""
        self.run, self.start, self.seconds = run, start, 0.0
        self.health = Health(run.folder, writes=run.process.main)
        self.stopped, self.guarded = False, ""
        main, log = run.process.main, run.folder / "log.jsonl"
        if main:
            trim_log(log, start)
        self.progress = ProgressLog(
            run.config.method, run.steps, start=start, log=log if main else None, show=main and show
        )

    def __enter__(self) -> "Observer":
        self.run.process.start_trackers(self.run.config)
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, error, trace)
        if error is None:
            self.run.process.end_trackers()

    def look_first(self) -> None:
        """The student as it begins: the guard's baseline, and samples. Nothing where a run is resumed."""
        if self.start == 0:
            self.run.validation.evaluate(self.run.roles.student)
            self._draw(0)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Within: a step's own work."""
        began = time.perf_counter()
        yield
        self.seconds = time.perf_counter() - began

    def observe(self, step: int, metrics: Metrics, signal: Stop) -> None:
        """Everything that is due after `step`. Raises Diverged."""
        config, process, began = self.run.config, self.run.process, time.perf_counter()
        values = process.mean(metrics)
        if "reward" in values:
            values["reward_ratio"] = values["reward_gradient"] / max(values["divergence_gradient"], 1e-30)
        self.health.check(values, step, metrics.prompts)
        # Reading the numbers has waited for the device.
        seconds = self.seconds + time.perf_counter() - began
        # Of a whole step, as `align bench` has it.
        values |= {"seconds": seconds, "images_per_second": config.batch_size / seconds}
        if process.device.type == "cuda":
            values["peak_gib"] = torch.cuda.max_memory_allocated(process.device) / 2**30
        tripped, last = None, step == self.run.steps
        if step % config.held_out.every == 0 or last:
            with self.run.average.applied():
                tripped, seen = self.run.validation.evaluate(self.run.roles.student)
            values |= seen
        if config.sample_every and (step % config.sample_every == 0 or last):
            with self.run.average.applied():
                self._draw(step)
        self.progress(step, SHOWN, **values)
        process.track(values, step)
        if tripped and process.main:
            console.print(f"step {step}: {tripped}")
        # GPUs may differ in a last digit, and all must end alike: the first process decides.
        (tripped, *_) = gather(tripped, process.world)
        self.guarded = tripped if tripped and config.held_out.guard == "stop" and not last else ""
        self.stopped = any_of(bool(signal), process.world) or bool(self.guarded)
        if self.stopped or last:
            self.run.checkpoints.save(step)
        else:
            self.run.checkpoints.save_if_due(step)

    def _draw(self, step: int) -> None:
        if self.run.process.main or self.run.process.sharded:
            self.run.samples.draw(step, self.run.roles, self.run.folder / "samples", keep=self.run.process.main)

"""What a person watches during long work: one progress bar, and a line of JSON a step for the machine."""

import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(stderr=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        if not task.speed:
            return Text("- step/s")
        return Text(f"{task.speed:.2f} step/s" if task.speed >= 1 else f"{1 / task.speed:.2f} s/step")


class Watch:
    """A progress bar with rate, time left and the newest figures, and `log.jsonl` with all of them."""

    def __init__(self, title: str, total: int, *, start: int = 0, log: Path | None = None, show: bool = True):
        self.total, self.step = total, start
        self._log = log.open("a", encoding="utf-8") if log else None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._progress = Progress(*columns, console=console, disable=not show, speed_estimate_period=60)
        self._task = self._progress.add_task(title, total=total, completed=start, figures="")

    def __enter__(self) -> "Watch":
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()
        if self._log:
            self._log.close()

    def __call__(self, step: int, show: tuple[str, ...] = (), **figures: Any) -> None:
        """Record that `step` steps are done. `show` names the figures the bar displays; all go to the log."""
        self.step = step
        shown = "  ".join(f"{name} {figures[name]:.4g}" for name in show or figures if isinstance(figures.get(name), float))
        self._progress.update(self._task, completed=step, figures=shown)
        if self._log:
            # JSON has no NaN; a figure that could not be had is null.
            clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}
            self._log.write(json.dumps({"step": step, **clean}) + "\n")
            self._log.flush()


def trim_log(path: Path, step: int) -> None:
    """Drop the lines of `log.jsonl` after `step`, and a torn last one, before resuming from `step`."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


class Stop:
    """Truthy once Ctrl-C or SIGTERM has arrived; holds the signal's name."""

    signal: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a flag the loop looks at; a second one ends the process at once."""
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.signal = signal.Signals(number).name
        console.print(f"{stop.signal}: saving, then stopping (once more to stop at once)")

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

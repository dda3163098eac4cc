"""What a person watches during long work: one progress bar, and one line of JSON per step for the machine."""

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import Progress, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

# What is printed is names, prompts and messages of others, which may hold what rich reads as markup.
AS_IT_IS: dict[str, Any] = {"markup": False, "emoji": False}
console = Console(stderr=True, **AS_IT_IS)

#: Seconds after which a line is due where no bar can be drawn.
EVERY = 30.0
SHORT = 4  # columns, below which a bar shows nothing


def printer() -> Console:
    """For tables on stdout: as wide as the terminal or COLUMNS says, or 120 columns
    where the output goes into a log.
    """
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120, **AS_IT_IS)


# ---- what is said of a task ------------------------------------------------------------------------------------------


def _count(task: Task) -> str:
    return f"{int(task.completed)}/{int(task.total or 0)}"


def _speed(task: Task) -> float | None:
    """Steps a second of late; where they are slow, since the beginning."""
    done = task.completed - task.fields["first"]
    return task.speed or (done / task.elapsed if done > 0 and task.elapsed else None)


def _rate(task: Task) -> str:
    speed, unit = _speed(task), task.fields["unit"]
    if not speed:
        return f"- {unit}/s"
    return f"{speed:.2f} {unit}/s" if speed >= 1 else f"{1 / speed:.2f} s/{unit}"


def _time(task: Task) -> str:
    """What is left, or what it took."""
    if task.finished:
        return f"in {_duration(task.finished_time or 0)}"
    speed = _speed(task)
    return f"{_duration((task.remaining or 0) / speed)} left" if speed else "-:--:-- left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _metrics(task: Task) -> list[str]:
    """Padded, so that what stands beside them stays in its place."""
    return [f"{name} {value:<6.4g}" for name, value in task.fields["metrics"].items()]


def _shortened(title: str, width: int) -> str:
    """A title in at most `width` columns: paths lose folders from the left, and what
    is still too long loses its end.
    """
    while len(title) > width:
        path = max(title.split(" "), key=lambda word: word.count("/"))
        if "/" not in path:
            return title[:width]
        title = title.replace(path, path.partition("/")[2], 1)
    return title


# ---- on a terminal ---------------------------------------------------------------------------------------------------


class _Row:
    """A task in one line of any width: how far it is and the time left always, and as much of the rest as fits."""

    def __init__(self, task: Task):
        self.task = task

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        task, width = self.task, options.max_width
        count, left, metrics = _count(task), _time(task), _metrics(task)
        room = width - len(count) - 1 - len(left)  # and what is added takes a space as well
        title = _shortened(task.description, min(width // 2, room - 1))
        room -= len(title) + 1
        bar = min(room - 1, 40)
        if metrics:
            bar = min(max(8, width // 8), max(SHORT, bar - len(metrics[0]) - 1))
        cells: list[RenderableType] = [Text(title)]
        if SHORT <= bar < room:
            cells.append(ProgressBar(total=task.total, completed=task.completed, width=bar))
            room -= bar + 1
        cells += [Text(count, "progress.download"), Text(left, "progress.remaining")]
        for text in [*metrics, _rate(task)]:
            if len(text) + 1 <= room:
                cells.append(Text(text))
                room -= len(text) + 1
        row = Table.grid(padding=(0, 1))
        for _ in cells:
            row.add_column(no_wrap=True)
        row.add_row(*cells)
        yield row


class _Bar(Progress):
    def get_renderables(self) -> Iterable[RenderableType]:
        """One row, whatever the columns."""
        yield from map(_Row, self.tasks)


# ---- in a log --------------------------------------------------------------------------------------------------------


class _Lines:
    """Where no bar can be drawn: a line every EVERY seconds, also within a long step, and one at the end."""

    def __init__(self, task: Task, clock: Callable[[], float]):
        self.task, self.clock, self.last = task, clock, clock()
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
        self._say()

    def due(self) -> None:
        """Say a line if it is time."""
        with self._lock:
            if self.clock() - self.last >= EVERY and not self.task.finished:
                self._say()

    def _run(self) -> None:
        while not self._done.wait(max(0.1, self.last + EVERY - self.clock())):
            self.due()

    def _say(self) -> None:
        self.last = self.clock()
        parts = [_count(self.task), _time(self.task), _rate(self.task), *map(str.rstrip, _metrics(self.task))]
        console.print(f"{self.task.description} {', '.join(parts)}", soft_wrap=True, markup=False, highlight=False)


class ProgressLog:
    """A progress bar with rate, time left and the newest metrics, and `log.jsonl` with all of them.

    Where the output is no terminal, lines that say the same. clock: seconds, of which only differences count.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        start: int = 0,
        log: Path | None = None,
        unit: str = "step",
        show: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.step = total, start
        self._log = log.open("a", encoding="utf-8") if log else None
        drawn = show and console.is_terminal
        self._progress = _Bar(console=console, disable=not drawn, speed_estimate_period=60, get_time=clock)
        fields: dict[str, Any] = {"metrics": {}, "unit": unit, "first": start}
        self._task = self._progress.add_task(title, total=total, completed=start, **fields)
        self._lines = _Lines(self._progress.tasks[0], clock) if show and not drawn else None

    def __enter__(self) -> "ProgressLog":
        self._progress.start()
        if self._lines:
            self._lines.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()
        if self._lines:
            self._lines.stop()
        if self._log:
            self._log.close()

    def advance(self, n: int) -> None:
        """Record that `n` more are done."""
        self(self.step + n)

    def __call__(self, step: int, show: tuple[str, ...] = (), **metrics: Any) -> None:
        """Record that `step` steps are done. `show` names the metrics the bar displays; all go to the log."""
        self.step = step
        shown = {name: metrics[name] for name in show or metrics if isinstance(metrics.get(name), float)}
        self._progress.update(self._task, completed=step, metrics=shown)
        if self._lines:
            self._lines.due()
        if self._log:
            # JSON has no NaN; a metric without a value is null.
            clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
            self._log.write(json.dumps({"step": step, **clean}) + "\n")
            self._log.flush()

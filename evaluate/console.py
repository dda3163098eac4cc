"""What a person watches during long work: one progress bar, and a line of JSON a step for the machine."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(stderr=True)


def printer() -> Console:
    """For tables on stdout: as wide as the terminal or COLUMNS says, or 120 columns where the output goes into a log."""
    return Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=120)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        if not task.speed:
            return Text(f"- {unit}/s")
        return Text(f"{task.speed:.2f} {unit}/s" if task.speed >= 1 else f"{1 / task.speed:.2f} s/{unit}")


class Watch:
    """A progress bar with rate, time left and the newest figures, and `log.jsonl` with all of them."""

    def __init__(
        self, title: str, total: int, *, start: int = 0, log: Path | None = None, unit: str = "step", show: bool = True
    ):
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
        self._task = self._progress.add_task(title, total=total, completed=start, figures="", unit=unit)

    def __enter__(self) -> "Watch":
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()
        if self._log:
            self._log.close()

    def advance(self, n: int) -> None:
        """Record that `n` more are done."""
        self(self.step + n)

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

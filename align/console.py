"""What a long run leaves to be gone on with, and how it is asked to stop."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from evaluate.console import console


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

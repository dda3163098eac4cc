"""What is seen of long work: whole lines at every width of a terminal, and lines by the clock where there is none."""

import io
import threading
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.table import Table

from evaluate import console as module
from evaluate.console import ProgressLog

TRAINING = {"assistant": 0.03512, "divergence": -1234.5, "reward": -0.1234, "reward_ratio": 12.345}
#: Of the commands: their titles, how much they have to do, and their figures.
SHOWN = {
    "di*": (10_000, TRAINING),
    "shapes-teacher": (20_000, {"loss": 0.123456}),
    "preference model": (300, {"loss": 0.123456}),
    "drawing /some/long/path/to/model": (30_000, {}),
    "scoring stabilityai/stable-diffusion-xl-base-1.0": (30_000, {}),
    "measuring fid/coco2014-30k, diversity/shapes-clip": (30_000, {}),
    "encoding prompts": (1_234_567, {}),
    "sweep": (123_456, {"runs_finished": 3.0}),
}


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def watched(monkeypatch: pytest.MonkeyPatch, *, width: int = 80, terminal: bool) -> io.StringIO:
    """Where a ProgressLog writes from now on."""
    out = io.StringIO()
    monkeypatch.setattr(
        module,
        "console",
        Console(width=width, file=out, force_terminal=terminal, color_system=None, legacy_windows=False),
    )
    return out


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    name = "runs/[lora]/[/x] :cat:"
    module.printer().print(name)
    table = Table(name, title=name)
    module.printer().print(table)
    assert capsys.readouterr().out.count(name) == 3


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("title", SHOWN)
def test_what_matters_is_whole_at_every_width(monkeypatch: pytest.MonkeyPatch, title: str, width: int) -> None:
    total, figures = SHOWN[title]
    out, clock = watched(monkeypatch, width=width, terminal=True), Clock()
    with ProgressLog(title, total, clock=clock) as progress:
        clock.now = 30.0
        progress(total // 4, **figures)
        clock.now = 60.0
        progress(total // 2, **figures)
        progress._progress.refresh()
    lines = [line for line in out.getvalue().replace("\x1b[2K", "").split("\r") if f"{total // 2}/{total}" in line]
    assert lines
    for line in lines:
        row = line.partition("\n")[0]
        assert len(row) <= width
        assert "…" not in row
        assert f" {total // 2}/{total} 0:01:00 left" in row
        assert "━" in row
        assert row.startswith(title.split(" ")[0])
        assert sum(name in row.split() for name in figures) >= min(len(figures), 1 if width == 60 else 2)
    if width == 120:
        assert all(f"{name} {value:.4g}" in " ".join(lines[0].split()) for name, value in figures.items())


@pytest.mark.parametrize(
    ("title", "short"),
    [
        ("drawing /a/long/path/to/model", "drawing path/to/model"),
        ("drawing owner/a-name-that-is-too-long-by-itself", "drawing a-name-that-is-"),
        ("no path at all, and a long one", "no path at all, and a l"),
        ("di*", "di*"),
    ],
)
def test_titles_lose_folders_first(title: str, short: str) -> None:
    assert module._shortened(title, 23) == short


def test_a_log_gets_a_line_every_thirty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    out, clock = watched(monkeypatch, terminal=False), Clock()
    with ProgressLog("di* [x]", 100, start=20, clock=clock) as progress:
        for step in range(21, 101):  # a second each
            clock.now += 1
            progress(step, ("reward",), reward=0.25, other=1.0)
        assert out.getvalue().splitlines() == [
            "di* [x] 50/100, 0:00:50 left, 1.00 step/s, reward 0.25",
            "di* [x] 80/100, 0:00:20 left, 1.00 step/s, reward 0.25",
        ]
    assert out.getvalue().splitlines()[2:] == ["di* [x] 100/100, in 0:01:20, 1.00 step/s, reward 0.25"]


def test_slow_steps_have_a_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    out, clock = watched(monkeypatch, terminal=False), Clock()
    with ProgressLog("drawing x", 10, unit="image", clock=clock) as progress:
        for _ in range(3):
            clock.now += 100
            progress.advance(1)
    assert out.getvalue().splitlines()[-1] == "drawing x 3/10, 0:11:40 left, 100.00 s/image"


def test_a_log_gets_lines_within_a_long_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.01)
    said = threading.Semaphore(0)
    out = watched(monkeypatch, terminal=False)
    printed: Callable[..., None] = module.console.print

    def note(*arguments: object, **options: object) -> None:
        printed(*arguments, **options)
        said.release()

    monkeypatch.setattr(module.console, "print", note)
    with ProgressLog("di*", 100):
        assert all(said.acquire(timeout=30) for _ in range(2))
    assert {line.split(",")[0] for line in out.getvalue().splitlines()} == {"di* 0/100"}


def test_nothing_is_said_where_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    out, clock = watched(monkeypatch, terminal=False), Clock()
    with ProgressLog("di*", 2, show=False, clock=clock) as progress:
        clock.now = 100.0
        progress(1)
    assert out.getvalue() == ""

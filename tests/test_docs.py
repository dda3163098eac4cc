"""The documents' commands run: in the order they stand on their page, in a checkout of its own, without a hub or a GPU.

A fenced block's first line says what it is:

    sh                      each line is run, and has to exit with 0, or with N where it ends in `# exits with N`
    sh hub, sh gpu          not run here; the options of our two commands have to be known
    sh hours                the same, for its length
    LANGUAGE PATH           the block is the file PATH
    LANGUAGE PATH after X   the block's lines belong into PATH behind the line that holds X
    python                  is run
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import warm

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)(?: ([^\n]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXITS = re.compile(r"\s+# exits with (\d)$")


class Block(NamedTuple):
    language: str
    rest: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*match) for match in BLOCK.findall(page.read_text(encoding="utf-8"))]


def lines(text: str) -> list[str]:
    """Commands, those that a backslash continues put together, comments left out."""
    joined = text.replace("\\\n", " ").splitlines()
    return [line for line in joined if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Python that begins with the libraries imported, and asks no hub."""
    with warm.interpreter(tmp_path_factory.mktemp("offline"), HF_HUB_OFFLINE="1") as program:
        yield program


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, offline: Path) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("align", "evaluate", "prompts", "tests", "pyproject.toml", "leaderboards"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    programs = folder / "bin"
    programs.mkdir()
    commands = {
        "align": "-m align.cli",
        "evaluate": "-m evaluate.cli",
        "torchrun": "-m torch.distributed.run",
        "python": "",
    }
    for name, module in commands.items():
        script = programs / name
        # pytest has to see the libraries imported.
        cold = f'[ "$2" != pytest ] || exec {shlex.quote(sys.executable)} "$@"\n'
        script.write_text(f'#!/bin/sh\n{cold}exec {shlex.quote(str(offline))} {module} "$@"\n')
        script.chmod(0o755)
    return folder


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert {page.name for page in PAGES} - {"README.md"} == set(re.findall(r"\]\(([\w-]+\.md)\)", index))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


#: Pages whose commands take long; the slow tests run them.
LONG = {
    "add-a-divergence", "add-a-model", "add-a-reward", "add-a-suite", "align-a-distilled-model", "align-your-model",
    "cost", "evaluate-images", "exact-gradients", "gate-a-ci", "many-gpus", "read-a-leaderboard",
}  # fmt: skip


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in LONG else [])
        for page in PAGES
        if any(block.language == "sh" for block in blocks(page))
    ],
)
def test_every_command_runs(page: Path, checkout: Path, offline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    shutil.copytree(checkout, folder, symlinks=True)
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
    }
    for language, rest, text in blocks(page):
        path, _, marker = rest.partition(" after ")
        if language == "sh" and rest:
            for line in lines(text):
                parses(line)
        elif language == "sh":
            for line in lines(text):
                expected = int(match[1]) if (match := EXITS.search(line)) else 0
                done = subprocess.run(
                    ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False
                )
                assert done.returncode == expected, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        elif marker:
            file = folder / path
            before, found, after = file.read_text().partition(marker)
            line, _, following = after.partition("\n")
            assert found, f"{path} has no {marker}"
            file.write_text(f"{before}{found}{line}\n{text}{following}")
        elif path:
            (folder / path).write_text(text)
        elif language == "python":
            done = subprocess.run(
                [offline, "-c", text], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{text}\n{done.stderr[-3000:]}"


def parses(line: str) -> None:
    """Whether one of our commands takes these options; a command of anybody else's passes."""
    import typer.main

    words = shlex.split(line, comments=True)
    if "-m" in words:  # torchrun ... -m align.cli train ...
        words = [words[words.index("-m") + 1].removesuffix(".cli"), *words[words.index("-m") + 2 :]]
    if words[0] not in ("align", "evaluate"):
        return
    app = importlib.import_module(f"{words[0]}.cli").app
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    commands[words[1]].make_context(words[1], words[2:])

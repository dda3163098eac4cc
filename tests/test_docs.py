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

from align.ablation import sweep
from align.ablation.config import SWEEP, SweepConfig
from align.config.train import TRAIN
from align.presets.load import resolve
from evaluate import distribution, scorers
from evaluate.results.csv_io import read_csv

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


CELL = re.compile(r"([-+]?[\d.,]+)( %)?(?: \(([\d.]+)\)| \[([-+\d.]+), ([-+\d.]+)\])?")


def rounded(value: str, like: str, *, percent: bool = False) -> str:
    """A figure as a page that has `like` would write it."""
    sign = "+" if like.startswith("+") else ""
    return f"{float(value) * (100 if percent else 1):{sign}.{len(like.partition('.')[2])}f}"


def test_the_readmes_table_is_the_leaderboards() -> None:
    rows = {row["model"]: row for row in read_csv(ROOT / "leaderboards" / "shapes.csv")}
    models = ("shapes/renderer", "shapes/teacher", "shapes/base", "shapes/aligned")
    page, compared = (ROOT / "README.md").read_text(encoding="utf-8"), 0
    for line in page[: page.index("## Two commands")].splitlines():
        if not line.startswith("|"):
            continue
        metric, *cells = (cell.strip(" *") for cell in line.strip("|").split("|"))
        name = metric.split("`")[1] if metric.startswith("`") else ""
        if "ahead" in metric or name not in rows["shapes/base"]:
            continue
        for model, cell in zip(models, cells, strict=True):
            value, _, error, low, high = CELL.fullmatch(cell.replace("*", "")).groups()  # type: ignore[union-attr]
            keys = {"": value, " se": error, " low": low, " high": high}
            for key, said in keys.items():
                assert said is None or rounded(rows[model][f"{name}{key}"], said) == said, (model, name, cell)
                compared += said is not None
    assert compared > 40


@pytest.mark.parametrize("page", ["few-steps", "over-optimisation", "which-method"])
def test_intervals_on_a_page_are_its_sweeps(page: str) -> None:
    """Every `x [low, high]` in a table of a page is a figure of the sweep that it shows."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").partition("## What stops it")[0]
    (name,) = set(re.findall(r"leaderboards/([\w-]+)/curves\.svg", text))
    folder = ROOT / "leaderboards" / name
    cells, claims = read_csv(folder / "cells.csv"), folder / "claims.csv"
    known = [[row[f"{of}{key}"] for key in ("mean", "low", "high")] for row in cells for of in ("", "difference ")]
    if claims.is_file():
        known += [[row[key] for key in ("value", "low", "high")] for row in read_csv(claims)]
    known = [each for each in known if all(x not in ("", "nan") for x in each)]
    written = [CELL.fullmatch(cell.strip(" *")) for line in text.splitlines() for cell in line.split("|")[1:-1]]
    found = [match.groups() for match in written if match and match[5]]

    def recorded(percent: str | None, *said: str) -> bool:
        return any(
            [rounded(x, y, percent=bool(percent)) for x, y in zip(each, said, strict=True)] == [*said] for each in known
        )

    assert len(found) > 20
    assert not [f"{x}{p or ''} [{low}, {high}]" for x, p, _, low, high in found if not recorded(p, x, low, high)]


#: Pages whose commands take long; the slow tests run them.
LONG = {
    "add-a-divergence", "add-a-model", "add-a-reward", "add-a-suite", "align-a-distilled-model", "align-your-model",
    "architecture", "cost", "evaluate-images", "exact-gradients", "gate-a-ci", "many-gpus", "read-a-leaderboard",
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
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
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
    while re.match(r"[A-Z_]+=", words[0]):  # set for this command
        words = words[1:]
    if "-m" in words:  # torchrun ... -m align.cli train ...
        words = [words[words.index("-m") + 1].removesuffix(".cli"), *words[words.index("-m") + 2 :]]
    if words[0] not in ("align", "evaluate"):
        return
    app = importlib.import_module(f"{words[0]}.cli").app
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    context = commands[words[1]].make_context(words[1], words[2:])
    given = context.params
    if given.get("sets") and words[1] in ("train", "bench"):
        resolve(given["preset"], TRAIN, sets=given["sets"])
    metrics = given.get("metric") or ()
    for metric in [metrics] if isinstance(metrics, str) else metrics:
        assert scorers.resolve(metric) or distribution.resolve(metric), metric


def test_the_sweep_that_a_page_shows_is_one(tmp_path: Path) -> None:
    (text,) = [x.text for x in blocks(ROOT / "docs" / "commands.md") if x.rest == "my-sweep.yaml"]
    path = tmp_path / "my-sweep.yaml"
    path.write_text(text)
    config = resolve(str(path), SWEEP)
    assert isinstance(config, SweepConfig)
    assert list(sweep.cells(config)) == ["centre", "none", "strong"]

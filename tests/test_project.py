"""The project's own shape."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {"prompts": {"prompts"}, "evaluate": {"prompts", "evaluate"}, "align": {"prompts", "evaluate", "align"}}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in names:
                top = name.split(".")[0]
                assert top not in ALLOWED or top in ALLOWED[package], f"{path}:{node.lineno} imports {name}"


@pytest.mark.parametrize("command", ["align", "evaluate"])
def test_help_answers_in_under_a_second(command: str) -> None:
    code = f"import sys; sys.argv = ['{command}', '--help']; from {command}.cli import main; main()"
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - began)
        assert done.returncode == 0
        assert "Usage" in done.stdout
    assert min(times) < 1.0, times


def test_tests_are_no_package_and_the_loop_is_short() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
    tree = ast.parse((ROOT / "align" / "train.py").read_text())
    loop = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train")
    assert loop.end_lineno is not None
    assert loop.end_lineno - loop.lineno < 250


def test_every_package_is_listed() -> None:
    import tomllib

    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    # Folders of data that lie elsewhere in the checkout have no `__init__.py`.
    elsewhere = setuptools["package-dir"]
    assert all(list((ROOT / folder).glob("*.csv")) for folder in elsewhere.values())
    listed = set(setuptools["packages"]) - elsewhere.keys()
    there = {
        str(path.parent.relative_to(ROOT)).replace("/", ".") for top in ALLOWED for path in (ROOT / top).rglob("__init__.py")
    }
    assert listed == there

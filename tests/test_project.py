"""The project's own shape."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from prompts import extensions

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
def test_help_imports_nothing_heavy(command: str) -> None:
    """So that it answers in under a second."""
    code = f"""
import atexit, sys
sys.argv = ['{command}', '--help']
atexit.register(lambda: print(*sorted({{name.partition('.')[0] for name in sys.modules}}), file=sys.stderr))
from {command}.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Usage" in done.stdout
    imported = set(done.stderr.split())
    assert command in imported
    heavy = "accelerate datasets diffusers matplotlib numpy pandas peft scipy torch transformers"
    assert not imported & set(heavy.split())


SOURCES = {path: ast.parse(path.read_text()) for top in ALLOWED for path in sorted((ROOT / top).rglob("*.py"))}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def length(node: Function) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_no_function_is_long_and_the_algorithm_is_a_page() -> None:
    functions = {
        f"{path.relative_to(ROOT)}:{node.name}": length(node)
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }
    assert not {name: lines for name, lines in functions.items() if lines > 60}
    assert functions["align/training/loop.py:train"] <= 40
    loop = [lines for name, lines in functions.items() if name.startswith("align/training/loop.py")]
    assert len(loop) == 3 and sum(loop) <= 90


#: A room may use those behind it.
ROOMS = (
    "cli",
    "commands",
    "world",
    "ablation",
    "bench",
    "memory",
    "training",
    "export",
    "run_folder",
    "presets",
    "config",
    "critics",
    "objectives",
    "rewards",
    "generators",
    "networks",
    "data",
    "options",
)  # fmt: skip


def rooms_used(tree: ast.Module) -> set[str]:
    """The rooms of `align` that a file imports from, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "align":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("align."):
            found.add(str(node.module).split(".")[1])
    return found


def test_imports_run_down_the_rooms() -> None:
    for path, tree in SOURCES.items():
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] != "align" or parts[1] == "__init__":
            continue
        behind = ROOMS[ROOMS.index(parts[1]) :]
        assert rooms_used(tree) <= set(behind), f"{path}: {rooms_used(tree) - set(behind)}"


def test_names_of_public_classes_are_unique_within_a_package() -> None:
    seen: dict[tuple[str, str], Path] = {}
    for path, tree in SOURCES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                key = (path.relative_to(ROOT).parts[0], node.name)
                assert key not in seen, f"{node.name} is in {seen[key]} and in {path}"
                seen[key] = path


#: A folder of what people add -> what makes a file of it one, and its files that are for the others.
KINDS = {
    "evaluate/scorers": ({"VARIANTS", "load"}, set()),
    "evaluate/distribution": ({"VARIANTS", "load"}, {"frechet", "jackknife", "mmd", "reference", "samples"}),
    "evaluate/families": ({"family"}, set()),
    "evaluate/layouts": ({"LAYOUTS"}, set()),
    "evaluate/samplers": ({"Options", "build"}, set()),
    "align/generators": ({"Options", "build"}, set()),
    "align/critics": ({"Options", "build"}, {"assistant"}),
}


@pytest.mark.parametrize("folder", KINDS)
def test_every_file_of_a_folder_of_additions_is_one(folder: str) -> None:
    declares, others = KINDS[folder]
    package = folder.replace("/", ".")
    there = {path.stem for path in (ROOT / folder).glob("[!_]*.py")}
    found = set.intersection(*(set(extensions.names(package, name)) for name in declares))
    assert found == there - others and (found or folder == "align/critics")


def test_formatting_is_left_out_for_literal_tables_alone() -> None:
    for path, tree in SOURCES.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        skipped = [number for number, line in enumerate(lines, 1) if line.rstrip().endswith("# fmt: skip")]
        tables = [
            node.end_lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign | ast.AnnAssign)
            and isinstance(node.value, ast.Dict | ast.Tuple | ast.List | ast.Set)
        ]
        assert set(skipped) <= set(tables), f"{path}:{sorted(set(skipped) - set(tables))}"


def test_every_package_is_listed() -> None:
    import tomllib

    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    # Folders of data that lie elsewhere in the checkout have no `__init__.py`.
    elsewhere = setuptools["package-dir"]
    assert all(list((ROOT / folder).glob("*.csv")) for folder in elsewhere.values())
    listed = set(setuptools["packages"]) - elsewhere.keys()
    there = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for top in ALLOWED
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert listed == there


# ---- a test asserts --------------------------------------------------------------------------------------------------

TESTS = ROOT / "tests"
ASSERTIONS = (
    "pytest.raises",
    "pytest.warns",
    "pytest.fail",
    "torch.testing.assert_",
    "np.testing.assert_",
    "pd.testing.assert_",
)


def functions(tree: ast.AST) -> dict[str, ast.FunctionDef]:
    """Every function by name, methods and functions within others included."""
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def asserts(function: ast.FunctionDef, helpers: set[str]) -> bool:
    """Whether an assertion, or a call of one of the helpers, stands in the function.

    `assert x is not None` only tells a type.
    """
    told = [ast.unparse(node.test) for node in ast.walk(function) if isinstance(node, ast.Assert)]
    called = [ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)]
    return any(not each.endswith(" is not None") for each in told) or any(
        name in helpers or name.startswith(ASSERTIONS) for name in called
    )


def asserting(tree: ast.Module, folder: Path = TESTS) -> set[str]:
    """The functions of a module that assert, and those it imports that do, by themselves or through others of them.

    folder: where modules of helpers lie.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (path := folder / f"{node.module}.py").is_file():
            found |= asserting(ast.parse(path.read_text()), folder) & {alias.name for alias in node.names}
    while more := {name for name, function in functions(tree).items() if asserts(function, found)} - found:
        found |= more
    return found


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_every_test_asserts(path: Path) -> None:
    tree = ast.parse(path.read_text())
    tests = {name for name in functions(tree) if name.startswith("test_")}
    assert tests
    assert tests <= asserting(tree), f"nothing is asserted by {', '.join(sorted(tests - asserting(tree)))}"


def test_what_asserts_is_told_from_what_does_not(tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text("def holds(x):\n    assert x\ndef shows(x):\n    print(x)\n")
    text = """
from helpers import holds, shows
def through(x): holds(x)
def test_a(): through(1)
def test_b(): shows(1)
def test_c(): subject.holds(1)
def test_d():
    with pytest.raises(ValueError): subject()
def test_e(): torch.testing.assert_close(1, 1)
def test_f(x): assert x is not None
"""
    assert asserting(ast.parse(text), tmp_path) == {"holds", "through", "test_a", "test_d", "test_e"}

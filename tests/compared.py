"""Which scorers some test compares with what their files say they are verified by."""

import ast
from pathlib import Path

import pytest


def compares(*names: str) -> pytest.MarkDecorator:
    """Gives a test the names of the scorers that it compares, which stand written out in it."""
    return pytest.mark.parametrize("name", names)


def compared() -> set[str]:
    """The names written out in a `@compares(...)` of any test."""
    return {
        argument.value
        for path in Path(__file__).parent.rglob("test_*.py")
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        for mark in function.decorator_list
        if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "compares"
        for argument in mark.args
        if isinstance(argument, ast.Constant)
    }

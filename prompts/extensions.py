"""Kinds of things that people add by writing a file: the files of a package, and those of the folders that ALIGN_EXTENSIONS names.

`ALIGN_EXTENSIONS=/my/folder` has `/my/folder/scorers/NAME.py` found as `evaluate.scorers.NAME`, and so for `distribution`, `families`,
`objectives`, `critics` and `generators`. Several folders are separated as in PATH.
"""

import importlib
import os
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prompts.io.errors import UserError

VARIABLE = "ALIGN_EXTENSIONS"


def extended(path: Iterable[str], kind: str) -> list[str]:
    """A package's `__path__`, with the folders of this kind behind it. What ships is found first, and cannot be replaced."""
    folders = [Path(folder) / kind for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
    return [*path, *(str(folder) for folder in folders if folder.is_dir())]


def names(package: Any, attribute: str) -> list[str]:
    """The modules of a package that have `attribute`; those whose name begins with `_` are nobody's but the package's own."""
    found = (module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))
    return [name for name in found if hasattr(importlib.import_module(f"{package.__name__}.{name}"), attribute)]


def member(package: str, name: str, attribute: str, *, what: str) -> Any:
    """The module `name` of a package, which has `attribute`; UserError, which calls it `what`, where there is none."""
    there = names(importlib.import_module(package), attribute)
    if name not in there:
        raise UserError(f"{what} = {name}: unknown; choose from {', '.join(there)}")
    return importlib.import_module(f"{package}.{name}")

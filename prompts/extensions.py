"""Kinds of things that people add by writing a file: the files of a package, and those of the
folders that ALIGN_EXTENSIONS names.

`ALIGN_EXTENSIONS=/my/folder` has `/my/folder/scorers/NAME.py` found as `evaluate.scorers.NAME`, and so for
`distribution`, `families`, `samplers`, `objectives`, `critics` and `generators`. Several folders are separated as in
PATH.
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
    """A package's `__path__`, with the folders of this kind behind it.

    What ships is found first, and cannot be replaced.
    """
    folders = [Path(folder) / kind for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
    return [*path, *(str(folder) for folder in folders if folder.is_dir())]


def names(package: str, attribute: str | None = None) -> list[str]:
    """The modules of a package, those that have `attribute` where one is named; a name that begins
    with `_` is the package's own.
    """
    path = importlib.import_module(package).__path__
    modules = [module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")]
    return [
        name
        for name in modules
        if attribute is None or hasattr(importlib.import_module(f"{package}.{name}"), attribute)
    ]


def member(package: str, name: str, attribute: str | None = None, *, what: str) -> Any:
    """The module `name` of a package, which has `attribute`; UserError, which calls it `what`, where there is none."""
    known = names(package, attribute)
    if name not in known:
        raise UserError(f"{what} = {name}: unknown; choose from {', '.join(known)}")
    return importlib.import_module(f"{package}.{name}")


class Variants:
    """A package whose files each declare `VARIANTS`, name -> what it is in a sentence, the first being
    what the file's own name means.
    """

    def __init__(self, package: str, *, what: str):
        """what: one of them is called in an error."""
        self.package, self.what = package, what

    def files(self) -> dict[str, Any]:
        """The modules by name."""
        return {name: importlib.import_module(f"{self.package}.{name}") for name in names(self.package, "VARIANTS")}

    def variants(self) -> dict[str, str]:
        """Every name and what it is."""
        return {name: text for module in self.files().values() for name, text in module.VARIANTS.items()}

    def verified(self) -> dict[str, str]:
        """What a variant was verified against, by its name; those of which nobody says it are not verified."""
        return {name: by for module in self.files().values() for name, by in getattr(module, "VERIFIED_BY", {}).items()}

    def resolve(self, name: str) -> str | None:
        """The variant that `name` stands for: itself, or a file's first; None where there is none."""
        files = self.files()
        name = next(iter(files[name].VARIANTS)) if name in files else name
        return name if name in self.variants() else None

    def find(self, name: str) -> tuple[str, Any]:
        """The variant that `name` stands for, and the module that has it. Raises UserError for an unknown name."""
        variant = self.resolve(name)
        for module in self.files().values():
            if variant in module.VARIANTS:
                return str(variant), module
        raise UserError(f"no {self.what} {name!r}; there are {', '.join(self.variants())}")

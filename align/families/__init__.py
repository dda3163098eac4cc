"""How a family's network becomes a denoiser: what it is conditioned on, its null prompt, and how it is called.

A file here is a family: `network` names the pipeline's component, `encode(pipeline, prompts)` returns the conditioning as
a dict of `[B, ...]` tensors, `null(pipeline)` the null prompt's as `[1, ...]`, and `call(network, x, t, conditioning)` runs
the network on what it expects. Nothing else in the code knows a family.
"""

import importlib
import pkgutil
from typing import Any


def names() -> list[str]:
    """The families there are."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def load(name: str) -> Any:
    """The module of the family `name`."""
    return importlib.import_module(f"{__name__}.{name}")

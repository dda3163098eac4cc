"""Weights that ship with the package: the world `shapes`. README.md beside this file is their card."""

import hashlib
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).parent


def folder(name: str) -> Path:
    """Where the model `name` (for example `shapes/teacher`) lies, whether or not it is there."""
    return HERE / name


def names() -> list[str]:
    """All weights that are there: what draws, and what scores."""
    return sorted(f"{p.parent.name}/{p.name}" for p in HERE.glob("*/*") if p.is_dir() and not p.name.startswith("_"))


def models() -> list[str]:
    """Those that draw."""
    return [name for name in names() if (folder(name) / "recipe.yaml").is_file()]


def digest() -> str:
    """What tells these weights from others: twelve hexadecimal digits."""
    return _digest(HERE)


@lru_cache
def _digest(home: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(home.rglob("*.safetensors")):
        whole.update(str(path.relative_to(home)).encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:12]

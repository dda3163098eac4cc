"""Weights that ship with the package: the world `shapes`. README.md beside this file is their card."""

from pathlib import Path

HERE = Path(__file__).parent


def folder(name: str) -> Path:
    """Where the model `name` (for example `shapes/teacher`) lies, whether or not it is there."""
    return HERE / name


def names() -> list[str]:
    """The models that are there."""
    return sorted(f"{p.parent.name}/{p.name}" for p in HERE.glob("*/*") if p.is_dir() and not p.name.startswith("_"))

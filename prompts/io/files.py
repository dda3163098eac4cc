"""Files and folders that are there whole or not at all."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prompts.io.errors import UserError


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a draft beside `path`, then put it in `path`'s place: a reader never sees half of it.

    The folder is made where it is missing. Raises UserError where the disk refuses.
    """
    # Not by the process's number alone: in containers it is often the same.
    draft = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another place"
        ) from None


def replace_folder(draft: Path, target: Path) -> None:
    """Put the folder `draft` in the place of `target`, which stays whole if this fails."""
    aside = target.with_name(f".{target.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)
    try:
        draft.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    replace(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def writable(path: Path) -> None:
    """Raise UserError where `replace` could not write `path`, so that this is known before the work is done."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    probe = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.probe")
    replace(probe, lambda draft: draft.touch())
    probe.unlink()


def write_as(path: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Write `--output` as its ending says: `writers` has what fills a file of each. Raises UserError for another."""
    if path.suffix not in writers:
        known = " or ".join(writers)
        raise UserError(f"--output {path}: unknown ending {path.suffix!r}; name a file that ends in {known}")
    writers[path.suffix](path)


def flush(path: Path) -> None:
    """Have a file or folder on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def text_sha256(text: str) -> str:
    """Hex digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()

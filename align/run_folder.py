"""A run folder is made, filled, and never spoiled."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from align.config.overrides import difference
from align.options import Config, dump
from prompts.io.errors import UserError
from prompts.io.files import replace, write_json
from prompts.io.yaml import read_yaml

#: What may differ when a run is resumed: nothing that changes what is computed up to a step, but for rounding.
FREE = {
    "steps", "save_every", "sample_every", "text_cache", "trackers",
    "gradient_accumulation_steps", "gradient_checkpointing", "parallel",
}  # fmt: skip

#: All that is in a run folder before the first step: `align` is what a tracker keeps there.
BEGINNING = {"config.yaml", "run.json", "samples", "align"}


def open_folder(config: Config, output: Path, *, resume: bool, preset: str | None = None) -> None:
    """Make `output` a run folder for `config`, or check that it is one already when resuming.

    preset: that ships, and that `config` was made from.
    """
    path = output / "config.yaml"
    if resume:
        if not path.is_file():
            raise UserError(f"{output}: no run to resume there; leave out --resume to start one")
        old, new = read_yaml(path), config.model_dump(mode="json")
        old, new = ({key: value for key, value in each.items() if key not in FREE} for each in (old, new))
        if changed := difference(old, new):
            raise UserError(f"{path}: {changed}; resume with the old value, or start in another folder")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: already there; add --resume to continue it, or choose another --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
        text = dump(config)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            replace(path, lambda draft: draft.write_text(text, encoding="utf-8"))
        if preset and "preset" not in (run := read_run(output)):  # resumed, it stays what it was begun from
            write_json(output / "run.json", run | {"preset": preset})
    except OSError as error:
        raise UserError(f"{output}: cannot be written to ({error.strerror}); choose another --output") from None


def read_run(folder: Path) -> dict[str, Any]:
    """A run folder's `run.json`, which says what its config does not; empty where there is none."""
    path = folder / "run.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        raise UserError(f"{path}: not JSON; delete it, and --resume the run to have it written again") from None
    return content


@contextmanager
def opened(config: Config, output: Path, *, resume: bool, preset: str | None = None) -> Iterator[None]:
    """Within: `open_folder`.

    An error before the first step undoes it, so that the corrected command finds the place as it was.
    """
    new_folders = [folder for folder in (output, *output.parents) if not folder.exists()]
    begun = (output / "config.yaml").is_file()
    with ExitStack() as stack:
        if resume and begun:
            stack.enter_context(alone(output))
        open_folder(config, output, resume=resume, preset=preset)
        if not resume:  # only now is it this run's
            stack.enter_context(alone(output))
        try:
            yield
        except BaseException:  # Ctrl-C as well, while models are loaded
            if not resume and _only_begun(output):
                _empty(output)
                for folder in new_folders:
                    with suppress(OSError):  # another run has found a place in it meanwhile
                        folder.rmdir()
            raise


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Within: no other process that asks for this is at work in `output`. Raises UserError where one is."""
    lock = FileLock(output / ".lock", timeout=0)
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"{output}: another run is at work there; wait for it, or choose another --output") from None
    except OSError as error:
        raise UserError(f"{output}: cannot be written to ({error.strerror}); choose another --output") from None
    try:
        yield
    finally:
        lock.release()


def _only_begun(output: Path) -> bool:
    """Whether a run has left nothing there but its beginning: no step in its log, no
    state, nothing that is not known.
    """
    files = (path for path in output.rglob("*") if path.is_file() and path.stat().st_size)
    return all(path.relative_to(output).parts[0] in BEGINNING for path in files)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

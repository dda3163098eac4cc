"""What published models look like without their weights, so that they can be timed, counted and weighed at full size
where there is no hub: every config, and for every tokenizer a stand-in of its vocabulary's size and longest text.

A file here has models where it has `LAYOUTS`, hub id -> what makes the model's files; their figures are published, and
their source stands beside them. A layout has no revision: the sizes of a published model do not change.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prompts import extensions
from prompts.io.errors import UserError

#: Content by its path in the repository: JSON, or text as it is.
Layout = Mapping[str, Any]

#: Whether layouts come before the hub; where it is None, a hub that failed is asked again all the same.
_first: ContextVar[bool | None] = ContextVar("layouts come first", default=None)


def known() -> dict[str, Callable[[], Layout]]:
    """What makes the files of a model, by its hub id."""
    return {
        repo: make
        for name in extensions.names(__name__, "LAYOUTS")
        for repo, make in extensions.member(__name__, name, what="layouts").LAYOUTS.items()
    }


@contextmanager
def first() -> Iterator[None]:
    """Within: where a layout is known the hub is not asked, as befits weights that are random anyway."""
    token = _first.set(True)
    try:
        yield
    finally:
        _first.reset(token)


@contextmanager
def asked_once() -> Iterator[None]:
    """Within: where a layout is known, a hub that has failed is not asked again, which takes it seconds each time."""
    token = _first.set(bool(_first.get()))
    try:
        yield
    finally:
        _first.reset(token)


def instead(repo: str, fetch: Callable[[], Path], folder: Path, file: str = "") -> Path:
    """`fetch()`, which asks the hub for `file` of `repo`, or for the folder of all its files; where that fails or is
    not wanted, the same of the layout, written below `folder`.
    """
    if repo not in known():
        return fetch()
    if not _first.get():
        with suppress(UserError):
            return fetch()
        if _first.get() is not None:
            _first.set(True)
    layout = known()[repo]()
    if file and file not in layout:
        return fetch()
    say(repo)
    write(layout, folder / repo)
    return folder / repo / file


def write(layout: Layout, folder: Path) -> None:
    """The files of a layout, in `folder`."""
    for name, content in layout.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


#: Those that this process has taken a layout of.
used: set[str] = set()


def say(repo: str) -> None:
    """Once in a process, that a model's configs are ours."""
    from evaluate.console import console

    if repo not in used:
        used.add(repo)
        console.print(
            f"{repo}: configs and tokenizers are made from published figures (evaluate/layouts), not fetched",
            soft_wrap=True,
        )


def pipeline(kind: str, parts: Mapping[str, tuple[str, Layout]], **options: Any) -> Layout:
    """The layout of a diffusers pipeline of class `kind`.

    parts: name -> its class and its config, or a tokenizer's files. options: of the pipeline itself.
    """
    index: dict[str, Any] = {"_class_name": kind, **options}
    files: dict[str, Any] = {"model_index.json": index}
    for name, (part, content) in parts.items():
        of_text = name.startswith(("text_encoder", "tokenizer"))
        index[name] = ["transformers" if of_text else "diffusers", part]
        if name.startswith("tokenizer"):
            files |= {f"{name}/{file}": text for file, text in content.items()}
        elif of_text:
            files[f"{name}/config.json"] = content
        else:
            file = "scheduler_config" if name == "scheduler" else "config"
            files[f"{name}/{file}.json"] = {"_class_name": part, **content}
    return files

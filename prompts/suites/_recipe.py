"""A suite's YAML file, and how what it names is fetched and checked."""

import hashlib
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from prompts.io import cache
from prompts.io.errors import UserError, first_line
from prompts.io.files import replace
from prompts.io.hub import refusal
from prompts.io.yaml import read_model

TIMEOUT = 30.0  # seconds without a byte


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hub(_Strict):
    """A data set of the hub at one commit."""

    repository: str
    revision: str


class File(_Strict):
    """One of a suite's files, below its hub repository or URL. group: given to each of its prompts.

    sha256 or git_blob: of its content; the latter is git's own id of a file (SHA-1), which a commit proves.
    """

    name: str
    sha256: str | None = None
    git_blob: str | None = None
    group: dict[str, str] = {}

    @model_validator(mode="after")
    def _one_hash(self) -> Self:
        if bool(self.sha256) == bool(self.git_blob):
            raise ValueError("give either sha256 or git_blob")
        return self

    @property
    def digest(self) -> str:
        """The hash that its content must have."""
        return self.sha256 or self.git_blob or ""

    def digest_of(self, path: Path) -> str:
        """The same hash of the file at `path`."""
        if self.sha256:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class Recipe(_Strict):
    """A suite that is read from files.

    n: prompts. hub or url: where its files are fetched from. format: `table` (see `_read`), `coco`, the annotations of
    COCO Captions, or `dpg`, the table of DPG-Bench. text: a table's column of prompts; groups, meta: name -> column.
    every: keeps rows 1, 1 + every, ... unique: keeps the first of rows that have the same text. per_prompt, metrics:
    images of a prompt and what is measured, unless asked for otherwise.
    """

    n: int
    source: str
    licence: str
    hub: Hub | None = None
    url: str | None = None
    files: tuple[File, ...]
    format: Literal["table", "coco", "dpg"] = "table"
    text: str | None = None
    groups: dict[str, str] = {}
    meta: dict[str, str] = {}
    every: int = 1
    unique: bool = False
    per_prompt: int = 1
    metrics: tuple[str, ...] = ()


def read(path: Path) -> Recipe:
    """The recipe in a YAML file."""
    return read_model(path, Recipe)


def obtain(recipe: Recipe, file: File, suite: str, path: Path | None) -> Path:
    """A local `file` that has its hash: at `path` (the file, its folder, or a copy of the repository), or fetched."""
    if path is not None and path.is_dir():
        path = next((p for p in (path / file.name, path / Path(file.name).name) if p.is_file()), path / file.name)
    local = path or (_from_hub(recipe.hub, file) if recipe.hub else _from_url(f"{recipe.url}/{file.name}", file))
    try:
        found = file.digest_of(local)
    except OSError as error:
        raise UserError(
            f"{local}: cannot be read ({error.strerror}); give a copy of {file.name} of suite {suite!r}"
        ) from None
    if found != file.digest:
        kind = "sha256" if file.sha256 else "git blob id"
        raise UserError(
            f"{local}: its {kind} is {found[:12]}..., but {file.name} of suite {suite!r} has {file.digest[:12]}...; "
            "fetch it again, or load it by its path as a prompt file of its own"
        )
    return local


def _from_hub(hub: Hub, file: File) -> Path:
    """Through the hub's own client, which caches it."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub.repository, file.name, repo_type="dataset", revision=hub.revision))
    except Exception as error:  # what a broken line raises is its HTTP library's, which changes between its versions
        raise refusal(error, f"datasets/{hub.repository}", file.name, hub.revision) from None


def _from_url(url: str, file: File) -> Path:
    """Cached under the file's hash, so that two versions never meet."""
    target = cache.folder("prompts") / file.digest / Path(file.name).name
    if target.is_file() and file.digest_of(target) == file.digest:
        return target
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            content = response.read()
    except (OSError, HTTPException) as error:
        raise _cannot(url, error) from None

    def write(draft: Path) -> None:
        draft.write_bytes(content)
        if file.digest_of(draft) != file.digest:  # a portal's page, say: kept, it would be what every later run finds
            raise _cannot(url, ValueError("it is another file than the suite was made of"))

    replace(target, write)
    return target


def _cannot(what: str, error: Exception) -> UserError:
    return UserError(f"{what}: cannot be fetched ({first_line(error)}); try again, or give a local copy by its path")

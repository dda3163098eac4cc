"""Prompt suites: what models are asked to draw, by name or from any file of prompts. One file here is one suite.

A suite is a YAML file (`_recipe.Recipe` has its fields) or a Python file that declares `N`, `SOURCE`, `LICENCE` and
`prompts()`, which gives (text, groups) or (text, groups, meta), and if it likes `PER_PROMPT` and `METRICS`. The file's
stem is the suite's name. Nothing else has to be registered.

>>> from prompts import suites
>>> suites.load("shapes").prompts[0].id
'shapes/0001'
"""

import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from prompts import extensions
from prompts.io.errors import UserError
from prompts.io.files import text_sha256
from prompts.suites import _overlap, _recipe
from prompts.suites._overlap import Match
from prompts.suites._read import SUFFIXES, Row, coco_rows, dpg_rows, table_rows

__all__ = ["SUFFIXES", "Card", "Match", "Prompt", "Suite", "card", "load", "names", "overlap"]

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Prompt:
    """One thing to draw.

    id: `suite/number`, the number being the row's, from 1; equal texts are told apart by it.
    text: as the file has it, quotes and edge blanks included.
    group: what a result can be broken down by, for example {"category": "Arts", "challenge": "Basic"}.
    meta: what scorers are told beside the text, for example {"include": [{"class": "bench", "count": 2}]}; JSON.
    """

    id: str
    text: str
    group: Mapping[str, str]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content(self) -> list[Any]:
        """All of it, to be hashed; as before there was meta where there is none."""
        return [self.id, self.text, self.group, *([self.meta] if self.meta else [])]


@dataclass(frozen=True)
class Suite:
    """Prompts in their order. sha256: of all that is known of them, so that equal hashes mean equal questions.

    per_prompt, metrics: images of a prompt and what is measured, unless asked for otherwise.
    """

    name: str
    prompts: tuple[Prompt, ...]
    sha256: str
    source: str
    licence: str
    per_prompt: int = 1
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Card:
    """What is known of a suite before its file is there. n: how many prompts it has; the rest is as `Suite` has it."""

    n: int
    source: str
    licence: str
    per_prompt: int = 1
    metrics: tuple[str, ...] = ()


def names() -> list[str]:
    """The suites that there are."""
    return sorted({*extensions.names(__name__), *(path.stem for path in HERE.glob("*.yaml"))})


def card(name: str) -> Card:
    """How many prompts the suite `name` has, where they are from and under what licence; nothing is fetched."""
    file = HERE / f"{name}.yaml"
    if file.is_file():
        recipe = _recipe.read(file)
        return Card(recipe.n, recipe.source, recipe.licence, recipe.per_prompt, recipe.metrics)
    module = _module(name)
    return Card(module.N, module.SOURCE, module.LICENCE, *_usual(module))


def load(name_or_path: str, *, path: Path | None = None) -> Suite:
    """The suite of that name, or the prompts of a file (.tsv, .csv, .json, .jsonl or .txt).

    path: a local copy of a named suite's file (a folder, where there are several), in place of fetching it; either way
    it must have the hash that the suite's YAML gives. Raises UserError, one sentence.
    """
    if name_or_path not in names():
        return _load_file(name_or_path, path)
    file = HERE / f"{name_or_path}.yaml"
    if not file.is_file():
        module = _module(name_or_path)
        if path is not None:
            raise UserError(f"suite {name_or_path!r} has no file; leave out {path}")
        made = (Row(*row) for row in module.prompts())
        return _suite(name_or_path, made, module.SOURCE, module.LICENCE, *_usual(module))
    recipe = _recipe.read(file)
    rows: list[Row] = []
    for part in recipe.files:
        local = _recipe.obtain(recipe, part, name_or_path, path)
        read = _rows(recipe, local)
        rows += [row._replace(group={**part.group, **row.group}) for row in read]
    rows = rows[:: recipe.every]
    if recipe.unique:
        firsts: dict[str, Row] = {}
        for row in rows:
            firsts.setdefault(row.text, row)
        rows = list(firsts.values())
    if len(rows) != recipe.n:
        raise UserError(f"{file}: n is {recipe.n}, but its files hold {len(rows)} prompts; fix it")
    return _suite(name_or_path, rows, recipe.source, recipe.licence, recipe.per_prompt, recipe.metrics)


def _rows(recipe: _recipe.Recipe, file: Path) -> list[Row]:
    if recipe.format == "table":
        return table_rows(file, text=recipe.text, groups=recipe.groups, meta=recipe.meta)
    return (coco_rows if recipe.format == "coco" else dpg_rows)(file)


def overlap(prompts: Iterable[str], suite: Suite, *, near: float = 0.8) -> list[Match]:
    """Which of `prompts`, for example a training set, are in `suite`: the same up to case and blanks, or nearly.

    near: least similarity, in (0, 1]; `_overlap` defines it. One match for each distinct prompt and each of the suite's
    that it resembles, most alike first.
    """
    return _overlap.find(prompts, [(prompt.id, prompt.text) for prompt in suite.prompts], near=near)


def _load_file(name: str, path: Path | None) -> Suite:
    file = Path(name)
    if path is not None or not (file.suffix in SUFFIXES or file.exists()):
        close = get_close_matches(name, names(), 1, 0)[0]
        raise UserError(
            f"no suite {name!r}; did you mean {close!r}? There are {', '.join(names())}, and any {', '.join(SUFFIXES)}"
            " file"
        )
    return _suite(file.stem, table_rows(file), str(file), "not stated")


def _suite(
    name: str, rows: Iterable[Row], source: str, licence: str, per_prompt: int = 1, metrics: Iterable[str] = ()
) -> Suite:
    listed = list(rows)
    width = max(4, len(str(len(listed))))
    prompts = tuple(
        Prompt(f"{name}/{i:0{width}d}", row.text, dict(row.group), dict(row.meta)) for i, row in enumerate(listed, 1)
    )
    content = json.dumps([p.content for p in prompts], ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    try:
        digest = text_sha256(content)
    except UnicodeEncodeError as error:
        before = content[: error.start][-40:]
        raise UserError(f"{source}: half of a character behind {before!r}; write it anew") from None
    return Suite(name, prompts, digest, source, licence, per_prompt, tuple(metrics))


def _usual(module: Any) -> tuple[int, tuple[str, ...]]:
    return getattr(module, "PER_PROMPT", 1), getattr(module, "METRICS", ())


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")

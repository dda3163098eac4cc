"""Settings laid over one another and compared."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel

from prompts.io.errors import UserError
from prompts.io.hub import redact
from prompts.io.validate import is_map, section_of
from prompts.io.yaml import parse


def merge(model: type[BaseModel], base: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`change` laid over `base`: sections are merged key by key; everything else is replaced, maps whose keys are the
    user's own too.
    """
    merged = dict(base)
    for key, value in change.items():
        section, old = None if is_map(model, key) else section_of(model, key), merged.get(key)
        merged[key] = (
            merge(section, old, value) if section and isinstance(old, dict) and isinstance(value, Mapping) else value
        )
    return merged


def assign(content: dict[str, Any], text: str) -> dict[str, Any]:
    """`content` with `a.b=value` carried out, the value read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {text!r}: not of the form key=value; write for example --set batch_size=8")
    try:
        parsed: Any = parse(value)
    except yaml.YAMLError:
        raise UserError(f"--set {text!r}: the value is not valid YAML; quote it") from None
    if isinstance(parsed, str):
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-4 as text
            parsed = float(parsed)
    return place(content, key.split("."), parsed)


def place(content: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of `content` with `value` at `path`, in place of what was there."""
    first, *rest = path
    inner = content.get(first)
    return {**content, first: place(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


def difference(old: Any, new: Any, *path: str) -> str | None:
    """`a.b was 1 and is now 2`, of the first of two configs' values that differ; None where none does.
    Positions in lists count from 0.
    """
    if old == new:
        return None
    parts = [_parts(old), _parts(new)]
    if parts[0] is not None and parts[1] is not None:
        for key in sorted(parts[0].keys() | parts[1].keys()):
            if changed := difference(parts[0].get(key), parts[1].get(key), *path, str(key)):
                return changed
        if old is not None and new is not None:
            return None  # what one does not have is not set in the other, being a setting of a later version
    said = ["not set" if value is None else repr(value) for value in (old, new)]
    return f"{'.'.join(path)} was {said[0]} and is now {said[1]}"


def _parts(value: Any) -> dict[Any, Any] | None:
    """What a value consists of, by name or by position; None for one that is a whole."""
    if isinstance(value, list):
        return dict(enumerate(value))
    return {} if value is None else value if isinstance(value, dict) else None


def refuse_tokens(content: Any, source: str) -> None:
    """Raise UserError where a text in `content` holds a token of the hub or a password: configs are written to disk."""
    if isinstance(content, str) and redact(content) != content:
        raise UserError(
            f"{source}: holds a token or a password, and a config is written to disk; take it out, and use 'hf auth"
            " login' or HF_TOKEN"
        )
    if isinstance(content, Mapping):
        for key, value in content.items():
            refuse_tokens(str(key), source)
            refuse_tokens(value, source)
    elif isinstance(content, list):
        for value in content:
            refuse_tokens(value, source)

"""Plain values as a model of them; an unknown key names the nearest known one."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from prompts.io.errors import UserError

M = TypeVar("M", bound=BaseModel)


def nearest(name: str, known: Sequence[str]) -> str:
    """What to say of a name that is not known: the nearest known one, or all of them."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(sorted(known))}"


def section_of(model: type[BaseModel] | None, key: str) -> type[BaseModel] | None:
    """The model of the section `key` of `model`, None where the field is no section."""
    field = model.model_fields.get(key) if model else None
    types = [field.annotation, *get_args(field.annotation)] if field else []
    return next((t for t in types if isinstance(t, type) and issubclass(t, BaseModel)), None)


def is_map(model: type[BaseModel] | None, key: str) -> bool:
    """Whether the field `key` of `model` has keys of the user's own."""
    field = model.model_fields.get(key) if model else None
    return field is not None and get_origin(field.annotation) is dict


def _keys(model: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """The keys known beside the last one of `location`."""
    inner: type[BaseModel] | None = model
    parts = [part for part in location[:-1] if not isinstance(part, int)]
    while parts:
        key = str(parts.pop(0))
        if is_map(inner, key):
            parts = parts[1:]  # the first is a name of the user's
        inner = section_of(inner, key)
    return list(inner.model_fields) if inner else []


def validate(model: type[M], content: dict[str, Any], source: str | Callable[[str], str]) -> M:
    """A model from plain values. UserError names the source (or what `source` makes of the
    field), the field and the remedy.
    """
    try:
        return model.model_validate(content)
    except ValidationError as failure:
        error = failure.errors()[0]
        field = ".".join(str(part) for part in error["loc"])
        where = source(field) if callable(source) else source
        if error["type"] == "extra_forbidden":
            raise UserError(
                f"{where}: unknown key {field!r}; {nearest(str(error['loc'][-1]), _keys(model, error['loc']))}"
            ) from None
        if error["type"] == "missing":
            raise UserError(f"{where}: {field!r} is missing; give it a value") from None
        if error["type"] == "value_error":
            raise UserError(f"{where}: {error['ctx']['error']}") from None
        raise UserError(
            f"{where}: {field} = {error['input']!r} cannot be used: {error['msg'].lower()}; change it"
        ) from None

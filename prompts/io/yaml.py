"""YAML files: as a mapping, or as a model of one."""

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from prompts.io.errors import UserError
from prompts.io.validate import validate

M = TypeVar("M", bound=BaseModel)


#: libyaml's, several times as fast, where PyYAML was built with it.
_Fastest: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Fastest):  # type: ignore[misc]
    """As YAML 1.2 has it true and false alone are booleans, so that `off` is a word."""

    yaml_implicit_resolvers = {  # noqa: RUF012  as its base has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def parse(text: str) -> Any:
    """What a text of YAML says. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file holding a mapping; UserError otherwise."""
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}: not valid YAML{where}; fix it there") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no keys; write 'key: value' lines")
    return content


def read_model(path: Path, model: type[M]) -> M:
    """A YAML file as `model` has it; UserError names the first field that is amiss."""
    return validate(model, read_yaml(path), str(path))

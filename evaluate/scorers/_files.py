"""What scorers read besides tensors: configs, tokenizers, and the indices that name files of weights. All of it arrives
as untrusted files.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from prompts.io.errors import UserError, first_line

T = TypeVar("T")

#: How transformers names the parts of a model's weights.
SHARD = re.compile(r"(pytorch_)?model-\d{5}-of-\d{5}\.(bin|safetensors)")


def from_config(path: Path, make: Callable[[Any], T], *, what: str) -> T:
    """What `make` makes of the content of a `config.json`. Raises UserError for one that is not `what`'s."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        return make(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise UserError(
            f"{path}: not the config of a {what} ({' '.join(str(error).split())}); fetch it again"
        ) from None


def read_tokenizer(path: Path) -> Any:
    """The tokenizer, of the library `tokenizers`, of a `tokenizer.json`."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library knows no narrower one
        raise UserError(f"{path}: not a tokenizer ({first_line(error)}); fetch it again") from None


def shards(index: Path) -> list[str]:
    """The files that an index names, in order. Raises UserError for a name that is not a file of weights'."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if all(SHARD.fullmatch(name) for name in names):
            return names
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise UserError(f"{index}: does not say which files hold the weights; fetch it again")

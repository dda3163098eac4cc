"""Files of weights that are published outside a hub, at an address of their own."""

from http.client import HTTPException
from pathlib import Path

import torch

from evaluate import weights
from evaluate.console import console
from prompts.io import cache, hub
from prompts.io.errors import UserError


def fetch(url: str, sha256: str, *, folder: str, what: str) -> Path:
    """Where the file lies on this machine, fetched on first use and kept.

    sha256: its hash, or how that begins. folder: of the cache. what: it is, and its size. Raises UserError with the
    remedy.
    """
    path = cache.folder(folder) / url.rpartition("/")[2]
    if path.is_file() and weights.sha256(path).startswith(sha256):
        return path
    console.print(f"fetching {what}, from {url} into {path.parent}")
    remedy = f"run it again, or give a local copy of {path.name} with --weights METRIC=PATH"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=console.is_terminal)
    except RuntimeError as error:  # its word for another hash
        raise UserError(f"{url}: sent another file, or a part of it ({hub.reason(error)}); {remedy}") from None
    except (OSError, HTTPException) as error:
        raise UserError(f"{url}: cannot be fetched ({hub.reason(error)}); {remedy}") from None
    return path

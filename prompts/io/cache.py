"""Where files are kept that were fetched or computed once."""

import os
from pathlib import Path


def folder(kind: str) -> Path:
    """The folder for one kind of files: below ALIGN_CACHE, or below `onestep-align` in the user's own folder of caches."""
    home = os.environ.get("ALIGN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "onestep-align"
    return Path(home) / kind

"""Where files are kept that were fetched or computed once."""

import os
from pathlib import Path

from platformdirs import user_cache_path


def folder(kind: str) -> Path:
    """The folder for one kind of files: below ALIGN_CACHE, or below `onestep-align` in
    the user's own folder of caches.
    """
    home = os.environ.get("ALIGN_CACHE") or user_cache_path("onestep-align", appauthor=False)
    return Path(home) / kind

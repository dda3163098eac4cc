"""An image that goes beside the page."""

from pathlib import Path
from typing import NamedTuple

from PIL import Image


class PageImage(NamedTuple):
    """`source` becomes `name`.png beside the page and, where `shrink` is not 0, `name`.jpg of
    at most that many pixels a side.
    """

    source: Path
    name: str
    shrink: int
    width: int
    height: int

    @classmethod
    def of(cls, source: Path, name: str, *, largest: int) -> "PageImage | None":
        """The image in a file, made smaller where a side is above `largest`; None where the
        file is not there or no image.
        """
        try:
            with Image.open(source) as image:
                width, height = image.size
        except (OSError, SyntaxError, ValueError):
            return None
        return cls(source, name, largest if max(width, height) > largest else 0, width, height)

"""Images of blocks as files: a block is there whole, or not at all."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from evaluate.images import as_bytes
from evaluate.runs.blocks import Block, PromptSeed
from prompts.io.files import replace, write_json

#: Pixels `[3, H, W]`, uint8 or float in [0, 1], or None; why there are none; and how many were drawn at once.
DrawnImage = tuple[Tensor | None, str | None, int]


@dataclass(frozen=True)
class StoredImage:
    """Result of a row: its file, the file's size, the hash of its pixels; or an error.

    batch: how many were drawn at once.
    """

    file: str | None
    size: int
    sha256: str | None
    error: str | None
    batch: int


class Store:
    """Images as PNG files, one folder per block, with an index that is written last."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, block: Block, image: StoredImage) -> Path:
        """An image's file."""
        return self.folder / block.key / str(image.file)

    def read(self, block: Block) -> list[StoredImage] | None:
        """Result of each row, or None where the block is not there or its files are not what the index says."""
        try:
            index = json.loads((self.folder / block.key / "index.json").read_text(encoding="utf-8"))
            images = [StoredImage(**row) for row in index]
        except (OSError, ValueError, TypeError):
            return None
        whole = len(images) == len(block.rows) and all(self._is_whole(block, image) for image in images)
        return images if whole else None

    def _is_whole(self, block: Block, image: StoredImage) -> bool:
        try:
            return image.file is None or self.path(block, image).stat().st_size == image.size
        except OSError:
            return False

    def open(self, block: Block, image: StoredImage) -> np.ndarray | None:
        """The pixels `[H, W, 3]`, uint8, of one image; None if the file is not the image that was drawn."""
        try:
            with Image.open(self.path(block, image)) as content:
                pixels = np.array(content)
        except (OSError, SyntaxError, ValueError):
            return None
        return pixels if pixels_sha256(pixels) == image.sha256 else None

    def write(self, block: Block, drawn: Sequence[DrawnImage]) -> list[StoredImage]:
        """Keep a block, and return what `read` would."""
        images = [self._write(block, row, each) for row, each in zip(block.rows, drawn, strict=True)]
        write_json(self.folder / block.key / "index.json", [asdict(image) for image in images])
        return images

    def _write(self, block: Block, row: PromptSeed, drawn: DrawnImage) -> StoredImage:
        image, error, batch = drawn
        if image is None:
            return StoredImage(None, 0, None, error, batch)
        name, pixels = f"{file_name(row.prompt.id)}-{row.seed}.png", to_uint8(image)
        path = self.folder / block.key / name
        # As fast as PNG goes: a one-step generator draws quicker than level 6 packs.
        replace(path, partial(Image.fromarray(pixels).save, format="PNG", compress_level=1))
        return StoredImage(name, path.stat().st_size, pixels_sha256(pixels), error, batch)


def pixels_sha256(image: np.ndarray | None) -> str | None:
    """Hash of an image `[H, W, 3]`, uint8: of its size and pixels, whatever file format holds them. None of None."""
    if image is None:
        return None
    return hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def to_uint8(image: Tensor) -> np.ndarray:
    """`[3, H, W]`, uint8 or float in [0, 1], to `[H, W, 3]`, uint8, rounded to nearest as stock diffusers does."""
    return as_bytes(image).permute(1, 2, 0).cpu().contiguous().numpy()


def file_name(prompt_id: str) -> str:
    """A prompt's id as part of a file's name."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in prompt_id)

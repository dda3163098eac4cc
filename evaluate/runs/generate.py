"""Pictures of a suite's prompts: drawn in fixed blocks, kept under a hash of everything that makes them, never drawn twice.

A block is a run of consecutive rows (prompt, seed) of the suite. Arithmetic differs in its last bits with the size of a batch, so a
block is always one batch, whichever process draws it and in whatever order; a batch that had to be split says so in its rows.
"""

import hashlib
import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluate import pipelines, samplers
from evaluate.images import read_image
from evaluate.weights import sha256
from prompts.io.errors import UserError
from prompts.io.files import replace
from prompts.suites import Prompt

T = TypeVar("T")
R = TypeVar("R")

Draw = Callable[[Sequence[str], Sequence[str], Sequence[int]], Tensor]
#: Pixels `[3, H, W]`, uint8 or float in [0, 1], or an error; and how many were drawn at once.
Drawn = tuple[Tensor | None, str | None, int]
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class PromptSeed:
    """One picture that is asked for: a prompt of a suite, and the seed its noise is drawn from together with the prompt's id."""

    prompt: Prompt
    seed: int


@dataclass(frozen=True)
class Block:
    """`rows` are drawn together. `key` is a hash of their ids, texts and seeds."""

    index: int
    rows: tuple[PromptSeed, ...]

    @property
    def key(self) -> str:
        """What its pictures and scores are kept under."""
        text = json.dumps([(row.prompt.id, row.prompt.text, row.seed) for row in self.rows])
        return f"{self.index:05d}-{digest(text)[:10]}"


@dataclass(frozen=True)
class StoredImage:
    """What became of a row: its file, the file's size, the hash of its pixels; or an error. `batch`: how many were drawn at once."""

    file: str | None
    size: int
    sha256: str | None
    error: str | None
    batch: int


def digest(text: str) -> str:
    """Hex sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def blocks(prompts: Sequence[Prompt], seeds: Sequence[int], size: int) -> list[Block]:
    """All rows of a suite, prompt by prompt and seed by seed, cut into blocks of `size`."""
    rows = [PromptSeed(prompt, seed) for prompt in prompts for seed in seeds]
    return [Block(i, tuple(rows[first : first + size])) for i, first in enumerate(range(0, len(rows), size))]


def pixels_sha256(picture: np.ndarray | None) -> str | None:
    """Hash of a picture `[H, W, 3]`, uint8: of its size and its pixels, whatever file format holds them. None of None."""
    if picture is None:
        return None
    return hashlib.sha256(str(picture.shape).encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()


class Store:
    """Pictures as PNG files, a folder a block, with an index that is written last: a block is there whole, or not at all."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, block: Block, picture: StoredImage) -> Path:
        """A picture's file."""
        return self.folder / block.key / str(picture.file)

    def read(self, block: Block) -> list[StoredImage] | None:
        """What became of each row, or None where the block is not there or its files are not what the index says."""
        try:
            found = json.loads((self.folder / block.key / "index.json").read_text(encoding="utf-8"))
            pictures = [StoredImage(**row) for row in found]
        except (OSError, ValueError, TypeError):
            return None
        whole = len(pictures) == len(block.rows) and all(p.file is None or self._is_whole(block, p) for p in pictures)
        return pictures if whole else None

    def failed(self, block: Block) -> bool:
        """Whether the block is to be tried again: it is not there, or some of its rows are errors."""
        pictures = self.read(block)
        return pictures is None or any(picture.error for picture in pictures)

    def _is_whole(self, block: Block, picture: StoredImage) -> bool:
        try:
            return self.path(block, picture).stat().st_size == picture.size
        except OSError:
            return False

    def open(self, block: Block, picture: StoredImage) -> np.ndarray | None:
        """The pixels `[H, W, 3]`, uint8, of one picture; None if the file is not the picture that was drawn."""
        try:
            with Image.open(self.path(block, picture)) as image:
                pixels = np.array(image)
        except (OSError, SyntaxError, ValueError):
            return None
        return pixels if pixels_sha256(pixels) == picture.sha256 else None

    def write(self, block: Block, drawn_rows: Sequence[Drawn]) -> None:
        """Keep a block: per row its pixels or None, its error or None, and its batch."""
        folder, index = self.folder / block.key, []
        for row, (drawn, error, batch) in zip(block.rows, drawn_rows, strict=True):
            name, size, pixels = None, 0, None
            if drawn is not None:
                name, pixels = f"{_file_name(row.prompt.id)}-{row.seed}.png", to_uint8(drawn)
                # As fast as PNG goes: a one-step generator draws quicker than level 6 packs.
                replace(folder / name, partial(Image.fromarray(pixels).save, format="PNG", compress_level=1))
                size = (folder / name).stat().st_size
            index.append({"file": name, "size": size, "sha256": pixels_sha256(pixels), "error": error, "batch": batch})
        text = json.dumps(index, indent=0)
        replace(folder / "index.json", lambda draft: draft.write_text(text, encoding="utf-8"))


def _file_name(prompt_id: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in prompt_id)


def ahead(function: Callable[[T], R], items: Iterable[T], *, depth: int = 4) -> Iterator[R]:
    """`function` of each item, in their order; up to `depth` of them are worked on in threads while the caller does something else."""
    with ThreadPoolExecutor(depth) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Halves(Generic[T, R]):
    """Does `function` to many items at once; where that fails, to each half, down to the single item whose error is then its outcome.

    Once memory has run short at some size, no more than half of that is tried again, and `say` has told so.
    """

    def __init__(self, function: Callable[[Sequence[T]], Sequence[R]], *, name: str, say: Callable[[str], Any]):
        self.function, self.name, self.say = function, name, say
        self.largest: float = math.inf

    def __call__(self, items: Sequence[T]) -> list[tuple[R | None, str | None, int]]:
        """Per item its result or None, its error or None, and how many were done at once."""
        if 1 < len(items) > self.largest:
            return self._halves(items)
        try:
            return [(result, None, len(items)) for result in self.function(items)]
        except UserError:
            raise
        except Exception as error:
            if _memory_is_short(error) and len(items) > 1:
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                self.largest = (len(items) + 1) // 2
                self.say(
                    f"{self.name}: no memory for {len(items)} at once; going on with {self.largest}, which the records say"
                )
            if len(items) == 1:
                return [(None, f"{type(error).__name__}: {error}".splitlines()[0], 1)]
        return self._halves(items)

    def _halves(self, items: Sequence[T]) -> list[tuple[R | None, str | None, int]]:
        middle = (len(items) + 1) // 2
        return self(items[:middle]) + self(items[middle:])


def _memory_is_short(error: Exception) -> bool:
    # On a CPU torch raises a plain RuntimeError.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def painter(draw: Draw, *, name: str, say: Callable[[str], Any]) -> Callable[[Block], list[Drawn]]:
    """What draws a block's rows together, or in halves where it must. name: of the model, for what is said."""

    def paint(rows: Sequence[PromptSeed]) -> list[Tensor | None]:
        texts, ids, seeds = [row.prompt.text for row in rows], [row.prompt.id for row in rows], [row.seed for row in rows]
        pictures = draw(texts, ids, seeds)
        finite = pictures.flatten(1).sum(1).isfinite().tolist()
        return [each if ok else None for each, ok in zip(pictures, finite, strict=True)]

    halves = Halves(paint, name=name, say=say)

    def paint_block(block: Block) -> list[Drawn]:
        return [
            (pixels, error or ("the model drew NaN or infinity" if pixels is None else None), batch)
            for pixels, error, batch in halves(block.rows)
        ]

    return paint_block


def to_uint8(picture: Tensor) -> np.ndarray:
    """`[3, H, W]`, uint8 or float in [0, 1], to `[H, W, 3]`, uint8, rounded to nearest as stock diffusers does."""
    levels = picture if picture.dtype == torch.uint8 else (picture * 255).round_().clamp_(0, 255).to(torch.uint8)
    return levels.permute(1, 2, 0).cpu().contiguous().numpy()


#: (model, device=, dtype=) -> what draws from it.
Drawer = Callable[..., Draw]


def drawer(model: str, *, device: str, dtype: torch.dtype) -> Draw:
    """What draws from a model: (prompts, prompt ids, seeds) -> `[B, 3, H, W]` in [0, 1]."""
    pipeline, how = pipelines.load(model, dtype=dtype).to(device), pipelines.recipe(model)
    sampler = samplers.make(how)

    def draw(prompts: Sequence[str], ids: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return sampler.draw(pipeline, how, prompts, seeds=seeds, keys=ids)

    return draw


# ---- pictures that somebody else made ------------------------------------------------------------------------------------


def pictures_digest(folder: Path) -> str:
    """Hash of the names and the bytes of all pictures in `folder`."""
    return digest("".join(f"{name} {sha256(path)}\n" for name, path in sorted(pictures_in(folder).items())))


def adopter(folder: Path, prompts: Sequence[Prompt], *, seeds: int) -> Callable[[Block], list[Drawn]]:
    """What finds a block's pictures in `folder` and its subfolders.

    A file is named by its prompt's id, with `-SEED` behind it where a prompt has several pictures, or by the prompt's number in
    the suite, counted from 0. A picture that is missing or cannot be read is an error in its row.
    """
    found = pictures_in(folder)
    by_number = {int(name): path for name, path in found.items() if name.isdecimal()} if seeds == 1 else {}
    number = {prompt.id: i for i, prompt in enumerate(prompts)}

    def look(row: PromptSeed) -> Drawn:
        name = row.prompt.id if seeds == 1 else f"{row.prompt.id}-{row.seed}"
        path = found.get(name) or found.get(_file_name(name)) or by_number.get(number[row.prompt.id])
        if path is None:
            return (
                None,
                f"{folder}: no picture is named {_file_name(name)}{f' or {number[row.prompt.id]}' if seeds == 1 else ''}",
                1,
            )
        try:
            return read_image(path), None, 1
        except UserError as error:
            return None, str(error), 1

    return lambda block: [look(row) for row in block.rows]


def pictures_in(folder: Path) -> dict[str, Path]:
    """Pictures by their path in `folder` without its suffix. Raises UserError where there are none, or two of one name."""
    if not folder.is_dir():
        raise UserError(f"--images {folder}: no such folder; check the path")
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in PICTURES]
    if not paths:
        raise UserError(f"--images {folder}: no pictures there ({', '.join(sorted(PICTURES))}); check the path")
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"--images {folder}: two pictures are named {twice[0]!r}; remove one")
    return dict(zip(names, paths, strict=True))

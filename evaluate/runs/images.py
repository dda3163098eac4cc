"""Images that somebody else made, found for the rows of a suite."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from evaluate.images import read_image
from evaluate.runs.blocks import Block, PromptSeed
from evaluate.runs.store import DrawnImage, file_name
from evaluate.weights import sha256
from prompts.io.errors import UserError
from prompts.io.files import text_sha256
from prompts.suites import Prompt

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def images_in(folder: Path) -> dict[str, Path]:
    """Images by their path in `folder` without its suffix.

    Raises UserError where there are none, or two of one name.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder}: no such folder; check the path")
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise UserError(f"--images {folder}: no images there ({', '.join(sorted(SUFFIXES))}); check the path")
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"--images {folder}: two images are named {twice[0]!r}; remove one")
    return dict(zip(names, paths, strict=True))


def images_digest(folder: Path) -> str:
    """Hash of the names and the bytes of all images in `folder`."""
    return text_sha256("".join(f"{name} {sha256(path)}\n" for name, path in sorted(images_in(folder).items())))


def _by_number(folder: Path, by_name: Mapping[str, Path], prompts: Sequence[Prompt]) -> dict[int, Path]:
    """Images by number; none where numbers are ids, as `0001` is where there is no 0 and an id ends so.

    Raises UserError for two of one number, and for numbers from 1.
    """
    names = [name for name in by_name if name.isdecimal()]
    numbers = [int(name) for name in names]
    tails = {prompt.id.rpartition("/")[2] for prompt in prompts}
    if 0 not in numbers and tails & set(names) and len(set(map(len, names))) == 1:
        return {}
    if twice := [number for number, count in Counter(numbers).items() if count > 1]:
        raise UserError(f"--images {folder}: two images are number {twice[0]}; remove one")
    if 0 not in numbers and (1 in numbers or len(prompts) in numbers):
        raise UserError(f"--images {folder}: numbered from 1; number them from 0, or name them by their prompts' ids")
    return {int(name): by_name[name] for name in names}


def existing_images(folder: Path, prompts: Sequence[Prompt], *, seeds: int) -> Callable[[Block], list[DrawnImage]]:
    """What finds a block's images in `folder` and its subfolders.

    A file is named by its prompt's id, or by what follows the id's last slash, with `-SEED` behind it where a prompt
    has several images; or by the prompt's number in the suite, counted from 0. An image that is missing or cannot be
    read is an error in its row.
    """
    by_name = images_in(folder)
    by_number = _by_number(folder, by_name, prompts) if seeds == 1 else {}
    number = {prompt.id: i for i, prompt in enumerate(prompts)}

    def find(row: PromptSeed) -> DrawnImage:
        name = row.prompt.id if seeds == 1 else f"{row.prompt.id}-{row.seed}"
        path = by_name.get(name) or by_name.get(file_name(name))
        path = path or by_number.get(number[row.prompt.id])
        path = path or (None if by_number else by_name.get(name.rpartition("/")[2]))
        if path is None:
            other = f" or {number[row.prompt.id]}" if by_number else ""
            return None, f"{folder}: no image is named {file_name(name)}{other}", 1
        try:
            return read_image(path), None, 1
        except UserError as error:
            return None, str(error), 1

    return lambda block: [find(row) for row in block.rows]

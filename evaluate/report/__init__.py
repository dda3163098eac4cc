"""One page that shows what runs measured and drew, and how trainings went: `evaluate report`.

The page holds its script, its styles and its data; images lie in a folder beside it. It asks for nothing from a
network, and says so in a Content-Security-Policy. Whatever comes from a run reaches the page as JSON and the
reader as text, never as markup.
"""

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from evaluate.console import ProgressLog
from evaluate.report import measured, training
from evaluate.report.page_image import PageImage
from prompts.io.errors import UserError
from prompts.io.files import replace

GENERATOR = "onestep-align evaluate report"
#: In the folder of images: that it is ours, and may be replaced.
MARKER = ".onestep-report"


class Written(NamedTuple):
    """The page, and how many images lie beside it."""

    page: Path
    images: int


def report(paths: Sequence[Path], output: Path, *, overwrite: bool = False, show: bool = True) -> Written:
    """Write one page of all runs, those of `evaluate run` and those of `align train`, and
    `STEM_files/` with their images beside it.

    Images are hard links where the file system has them, else copies. Page and folder are replaced only where they are
    a report already; `overwrite` lifts that for the page. Raises UserError for what is no run, for runs of several
    suites, and for empty ones.
    """
    _check(output, overwrite)
    trainings = [path for path in paths if training.is_run(path)]
    data, images = measured.gather([path for path in paths if path not in trainings])
    learned, samples = training.gather(trainings)
    files = output.with_name(f"{output.stem}_files")
    page = assemble({"files": files.name, "measured": data, "training": learned})
    _write(output, files, page, [*images, *samples], show=show)
    return Written(output, len(images) + len(samples))


def assemble(data: dict[str, Any]) -> str:
    """The page, of its three parts and the data."""
    here = resources.files(__package__)
    html, css, js = (here.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    policy = (
        f"default-src 'none'; img-src 'self'; style-src '{_hash(css)}'; script-src '{_hash(js)}'; base-uri 'none';"
        " form-action 'none'"
    )
    # The data last: what is in it is not looked through again.
    for mark, text in (("policy", policy), ("generator", GENERATOR), ("css", css), ("js", js), ("data", embed(data))):
        html = html.replace(f"%{mark}%", text, 1)
    return html


def embed(data: Any) -> str:
    """JSON in which nothing ends a script element or a line of script: ASCII alone, and no `<`, `>` or `&`."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"})


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _check(output: Path, overwrite: bool) -> None:
    if output.suffix != ".html":
        raise UserError(f"--output {output}: a report is a page; give it a name ending in .html")
    if output.exists() and not (overwrite and output.is_file()) and not _is_ours(output):
        raise UserError(f"--output {output}: already there and no report; choose another name, or add --overwrite")
    files = output.with_name(f"{output.stem}_files")
    if files.exists() and not (files / MARKER).is_file():
        raise UserError(f"{files}: already there and no report's folder; move it away, or choose another --output")


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return f'content="{GENERATOR}"'.encode() in file.read(2048)
    except OSError:
        return False


def _write(output: Path, files: Path, page: str, images: Sequence[PageImage], *, show: bool) -> None:
    """Fill a draft of the folder, put it in the old one's place, then the page; where that fails, the old ones stay."""
    draft, old = (files.with_name(f".{files.name}.{os.getpid()}.{what}") for what in ("partial", "old"))
    try:
        draft.mkdir(parents=True)
        (draft / MARKER).write_text(
            f"{GENERATOR}: made by a program, which replaces this folder with the page beside it\n"
        )
        _place(draft, images, show=show)
        try:
            if files.exists():
                files.rename(old)
            draft.rename(files)
            replace(output, lambda path: path.write_text(page, encoding="utf-8"))
        except BaseException:  # Ctrl-C as well: page and images stay those of one report
            if old.exists():
                if files.exists():
                    files.rename(draft)
                old.rename(files)
            raise
    except OSError as error:
        where = error.filename or files
        raise UserError(
            f"{where}: cannot be written ({error.strerror or error}); make room or choose another --output"
        ) from None
    finally:
        for left in (draft, old):
            shutil.rmtree(left, ignore_errors=True)
        if not output.exists():  # images without a page
            shutil.rmtree(files, ignore_errors=True)


def _place(folder: Path, images: Iterable[PageImage], *, show: bool) -> None:
    images = list(images)
    for parent in {folder / image.name for image in images}:
        parent.parent.mkdir(parents=True, exist_ok=True)
    with ProgressLog("images", len(images), unit="image", show=show) as progress, ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda image: _place_one(folder, image), images):
            progress.advance(1)


def _place_one(folder: Path, image: PageImage) -> None:
    target = folder / f"{image.name}.png"
    try:
        os.link(image.source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(image.source, target)
    if image.shrink:
        try:
            with Image.open(image.source) as thumbnail:
                thumbnail.thumbnail((image.shrink, image.shrink), Image.Resampling.LANCZOS)
                thumbnail.convert("RGB").save(folder / f"{image.name}.jpg", quality=85)
        except (OSError, SyntaxError) as error:
            raise UserError(f"{image.source}: torn image ({error}); delete it, and have it drawn again") from None

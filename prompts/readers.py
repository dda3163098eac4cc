"""Prompts by position: of the embedded world, a file, a table, or a dataset of the hub."""

import csv
import difflib
import glob
import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prompts.io import hub
from prompts.io.errors import UserError

MAX_WORDS = 1000


class Prompts:
    """Texts by position, in Arrow's columns: read from a memory map, whatever their number."""

    def __init__(self, column: Any, kept: np.ndarray | None = None):
        """column: a pyarrow ChunkedArray of strings. kept: the rows of it that count, by default all."""
        self._column, self._kept = column, kept

    def spread(self, n: int) -> "Prompts":
        """n of them, evenly spread and in their order; all where they are no more."""
        if n >= len(self):
            return self
        chosen = np.arange(n) * len(self) // n
        return Prompts(self._column, chosen if self._kept is None else self._kept[chosen])

    def __len__(self) -> int:
        return len(self._column) if self._kept is None else len(self._kept)

    def __getitem__(self, i: Any) -> str:
        return str(self._column[int(i if self._kept is None else self._kept[i])].as_py())

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def sha256(self) -> str:
        """Hash of the column's texts and their order, and of which of them count."""
        import pyarrow as pa

        lengths, texts = hashlib.sha256(), hashlib.sha256()
        if self._kept is not None:
            lengths.update(self._kept.astype(np.int64).tobytes())
        for chunk in self._column.chunks:
            large = chunk.fill_null("").cast(pa.large_string())
            _, offsets, content = large.buffers()
            ends = np.frombuffer(offsets, np.int64)[large.offset : large.offset + len(large) + 1]
            lengths.update(np.diff(ends).tobytes())
            texts.update(memoryview(content or b"")[int(ends[0]) : int(ends[-1])])
        return hashlib.sha256(lengths.digest() + texts.digest()).hexdigest()

    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """For each prompt the number of its text, `[N]`, and for each text the position of its first prompt, `[M]`."""
        import pyarrow as pa

        # Offsets of 64 bits, since all texts together may be more than 2 GB.
        large = pa.chunked_array([chunk.cast(pa.large_string()) for chunk in self._column.chunks])
        codes = np.concatenate([chunk.indices.fill_null(-1).to_numpy() for chunk in large.dictionary_encode().chunks])
        pa.default_memory_pool().release_unused()
        _, first, rows = np.unique(
            codes if self._kept is None else codes[self._kept], return_index=True, return_inverse=True
        )
        return rows, first


def read_prompts(source: str, *, at_most: int | None = None) -> Prompts:
    """The prompts `source` names, blank ones left out. Raises UserError with the remedy.

    at_most: of more so many, evenly spread.
    source: `shapes:train`, `shapes:validation`, `shapes:test`; a UTF-8 text file with one prompt per line;
    `FILE:COLUMN` of a .parquet, .csv, .tsv, .json or .jsonl file; or `OWNER/NAME:COLUMN`, of the split `train` of a
    dataset of the hub, `@REVISION` behind it to pin one.
    """
    if at_most is not None:
        return read_prompts(source).spread(at_most)
    if source in ("shapes:train", "shapes:validation", "shapes:test"):
        return _shapes(source.removeprefix("shapes:"))
    table, hub_id = TABLE.fullmatch(source), dataset_id(source)
    path = Path(table[1] if table else source)
    if hub_id and not table and not path.exists():
        return _open(source, None)
    try:
        stat = path.stat()
        path.open("rb").close()
    except FileNotFoundError:
        raise UserError(
            f"prompts = {source}: no such file; give a text file with one prompt per line, FILE:COLUMN,"
            " OWNER/NAME:COLUMN of the hub, or shapes:train"
        ) from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if stat.st_size == 0:
        raise UserError(f"{source}: holds no prompt; write one per line")
    return _open(source, (stat.st_mtime_ns, stat.st_size))


#: FILE:COLUMN
TABLE = re.compile(r"(.+\.(parquet|csv|tsv|jsonl?))(?::([^:]+))?")


def is_named_by_column(source: str) -> bool:
    """Whether it is what prompts to train on are named by, and no suite: a column, or a split of `shapes`."""
    table = TABLE.fullmatch(source)
    return source.startswith("shapes:") or bool(table[3] if table else dataset_id(source))


class DatasetId(NamedTuple):
    """A column of a dataset on the hub."""

    repository: str
    column: str
    revision: str | None


def dataset_id(source: str) -> DatasetId | None:
    """`OWNER/NAME:COLUMN[@REVISION]` taken apart; None for what is none."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+):([^@]+)(?:@([\w./-]+))?", source)
    return DatasetId(match[1], match[2], match[3]) if match and not source.startswith(".") else None


def _shapes(split: str) -> Prompts:
    import pyarrow as pa

    from prompts.shapes import captions
    from prompts.shapes.grammar import FAMILIES

    per_family = [captions(split, family) for family in FAMILIES]
    # Families count alike, though there are many more pairs than single shapes.
    longest = max(map(len, per_family))
    return Prompts(pa.chunked_array([[family[i % len(family)] for i in range(longest) for family in per_family]]))


@lru_cache(4)
def _open(source: str, _stamp: tuple[int, int] | None) -> Prompts:
    """What `read_prompts` found, opened once in a process. _stamp: of a file's version."""
    import datasets

    datasets.disable_progress_bars()
    where = dataset_id(source)
    if _stamp is None and where is not None:
        table = _fetch(where)
        return _column(source, table, where.column, "row")
    match = TABLE.fullmatch(source)
    if match is None:
        table = _load("text", source)
        return _column(source, table, "text", "line")
    file, suffix, column = match.groups()
    # As elsewhere here, a .tsv file has no quoting, and what looks like a missing number is a text.
    plain: dict[str, Any] = {"na_filter": False, "skip_blank_lines": False}
    options: dict[str, Any] = {"csv": plain, "tsv": plain | {"sep": "\t", "quoting": csv.QUOTE_NONE}}.get(suffix, {})
    table = _load({"tsv": "csv", "jsonl": "json"}.get(suffix, suffix), file, **options)
    if column is None:
        raise UserError(f"prompts = {source}: name its column, {file}:COLUMN; it has {', '.join(table.column_names)}")
    return _column(source, table, column, "row")


def _load(builder: str, file: str, **options: Any) -> Any:
    import datasets

    try:
        return datasets.load_dataset(
            builder, data_files=[glob.escape(str(Path(file).absolute()))], split="train", **options
        )
    except Exception as error:  # its own, pandas's and Arrow's
        causes = list(_causes(error))
        if any(isinstance(cause, UnicodeDecodeError) for cause in causes):
            raise UserError(f"{file}: not UTF-8 text ({_undecodable(Path(file))}); save it as UTF-8") from None
        for cause in causes:
            if isinstance(cause, OSError) and cause.strerror:
                raise UserError(
                    f"{file}: cannot be read ({cause.strerror}); check it, and that there is space in HF_HOME"
                ) from None
        raise UserError(f"{file}: cannot be read ({hub.reason(causes[-1])}); fix it") from None


def _undecodable(path: Path) -> str:
    before = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number}, byte {before + error.start}"
            before += len(line)
    return "in its columns"


def _causes(error: Any) -> Iterator[Exception]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _fetch(where: DatasetId) -> Any:
    """The split `train` of a dataset of the hub.

    Where the hub is out of reach and no revision is pinned, the newest local copy.
    """
    import datasets
    from huggingface_hub import HfApi

    commit = where.revision
    try:
        if commit and not re.fullmatch(r"[0-9a-f]{40}", commit):
            commit = HfApi().dataset_info(where.repository, revision=commit).sha
        table = datasets.load_dataset(where.repository, revision=commit, split="train")
    except Exception as error:  # its own, the hub client's, the HTTP library's and Arrow's
        raise _refusal(error, where) from None
    # Local copies are taken for one another where the hub cannot be asked.
    if commit and any(Path(file["filename"]).parent.name != commit for file in table.cache_files):
        raise UserError(
            f"datasets/{where.repository}: there is no local copy of revision {where.revision}, and the hub cannot be"
            " asked; connect to the hub, or name no revision"
        )
    return table


def _refusal(error: Exception, where: DatasetId) -> UserError:
    """The sentence for a dataset of the hub that is unavailable."""
    from huggingface_hub import errors, hf_hub_download

    name, said = f"datasets/{where.repository}", str(error)
    if "scripts are no longer supported" in said:
        return UserError(
            f"{name}: can be read by a program of its own alone, which is refused; give a copy of it as FILE:COLUMN"
        )
    if isinstance(error, ValueError) and "split" in said:
        return UserError(
            f"{name}: has no split train ({hub.reason(error)}); give another dataset, or a copy as FILE:COLUMN"
        )
    if isinstance(error, FileNotFoundError):  # what lies behind it, `datasets` does not pass on
        try:
            hf_hub_download(where.repository, "README.md", repo_type="dataset", revision=where.revision)
        except errors.LocalEntryNotFoundError:
            pass
        except errors.HfHubHTTPError as plain:
            error = error if isinstance(plain, errors.EntryNotFoundError) else plain
    return hub.refusal(error, name, "its prompts", where.revision or "main")


def _column(source: str, table: Any, name: str, unit: str) -> Prompts:
    """The prompts in a column of a `datasets.Dataset`; unit: what a row of it is called."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if name not in table.column_names:
        near = difflib.get_close_matches(name, table.column_names, n=1, cutoff=0.0)[0]
        raise UserError(f"prompts = {source}: has no column {name!r}; did you mean {near!r}?")
    column = table.data.column(name)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise UserError(f"prompts = {source}: the column {name!r} holds {column.type}, not text; name another")
    masks, first = [np.zeros(0, bool)], 0
    for chunk in column.chunks:
        masks.append(pc.greater(pc.binary_length(pc.utf8_trim_whitespace(chunk)), 0).fill_null(False).to_numpy(False))
        # So many words take at least so many bytes.
        for i in np.flatnonzero(pc.greater(pc.binary_length(chunk), 2 * MAX_WORDS).fill_null(False).to_numpy(False)):
            if (words := len(chunk[int(i)].as_py().split())) > MAX_WORDS:
                raise UserError(
                    f"{source}, {unit} {first + i + 1}: a prompt of {words:,} words; shorten it to {MAX_WORDS:,} or"
                    " fewer"
                )
        first += len(chunk)
    filled = np.concatenate(masks)
    if not filled.any():
        raise UserError(f"{source}: holds no prompt; write one per {unit}")
    return Prompts(column, None if filled.all() else np.flatnonzero(filled))

"""What the networks are given of every prompt: encoded once and kept on disk (`ahead`), or encoded
as batches are drawn (`live`).

A cache is a folder: `manifest.json` says what made it; `rows.npy` has the number of each prompt's text,
`first.npy` each text's first prompt; `null.safetensors` is the null prompt; `NNNNN.safetensors` are the texts'
rows, ROWS per file. Each file is written under another name, flushed, and renamed, so that a kill loses at most
the file being made. Any number of processes, on any number of machines, fill one folder together: each takes the
files that nobody else is at work on.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.profiler import record_function

from evaluate import pipelines
from evaluate.console import ProgressLog
from prompts.io import cache
from prompts.io.errors import UserError
from prompts.io.files import flush, text_sha256
from prompts.readers import Prompts

ROWS = 512  # texts in a file
OPEN = 256  # files whose headers are kept
FORMAT = 2
ENCODING = "encoding texts"  # what profiles call it where it is done as batches are drawn
#: What a person calls a manifest's keys.
CALLED = {
    "format": "an older version", "family": "another family", "encoders": "another text encoder or tokenizer",
    "prompts": "other prompts", "rows": "other prompts", "dtype": "another precision",
    "rows_per_chunk": "another version",
}  # fmt: skip

Conditioning = dict[str, Tensor]


class TextEmbeddings:
    """What the networks are given of prompts, by position: conditioning, null conditioning and texts."""

    def __init__(self, prompts: Prompts, uncond: Mapping[str, Tensor], *, device: Any, dtype: torch.dtype):
        """uncond: the rows of the null prompt, `[1, ...]`."""
        self.prompts, self.device, self.dtype = prompts, device, dtype
        self._uncond = self._moved(uncond)

    def _moved(self, rows: Mapping[str, Tensor]) -> Conditioning:
        return {key: value.to(self.device, self.dtype) for key, value in rows.items()}

    def cond(self, picks: Any, texts: list[str]) -> Conditioning:
        """Rows of the prompts at `picks` `[B]`, whose texts these are."""
        raise NotImplementedError

    def __call__(self, picks: Any) -> tuple[Conditioning, Conditioning, list[str]]:
        """Conditioning, null conditioning and texts of the prompts at `picks` `[B]`;
        rows are in `dtype` on `device`.
        """
        texts = [self.prompts[i] for i in picks]
        # Copied: on a CPU, a product with rows of stride 0 differs in its last bits with
        # the precision they are stored in.
        uncond = {key: value.expand(len(texts), *value.shape[1:]).contiguous() for key, value in self._uncond.items()}
        return self._moved(self.cond(picks, texts)), uncond, texts


class OnlineTextEncoder(TextEmbeddings):
    """Encodes prompts as they come; the text encoders stay where they are."""

    def __init__(self, family: Any, pipeline: Any, prompts: Prompts, *, device: Any, dtype: torch.dtype):
        self._encode = lambda texts: family.encode(pipeline, texts)
        super().__init__(prompts, family.null(pipeline), device=device, dtype=dtype)

    def cond(self, picks: Any, texts: list[str]) -> Conditioning:
        """Encoded now."""
        with record_function(ENCODING):
            rows: Conditioning = self._encode(texts)
        return rows


class CachedTextEmbeddings(TextEmbeddings):
    """Reads from a folder in which every text has been encoded; needs no text encoder any more."""

    def __init__(self, prompts: Prompts, folder: Path, *, device: Any, dtype: torch.dtype):
        super().__init__(prompts, _read(folder / "null.safetensors"), device=device, dtype=dtype)
        self.folder = folder
        self._rows = np.load(folder / "rows.npy", mmap_mode="r")
        self._file = lru_cache(OPEN)(lambda number: safe_open(chunk(folder, number), framework="pt"))

    def cond(self, picks: Any, texts: list[str]) -> Conditioning:
        """Read from the files."""
        places = [divmod(int(self._rows[int(i)]), ROWS) for i in picks]
        return {
            key: torch.cat([self._file(number).get_slice(key)[row : row + 1] for number, row in places])
            for key in self._uncond
        }


def prepare(
    name: str,
    family: Any,
    pipeline: Any,
    prompts: Prompts,
    *,
    encoding: str,
    folder: str | None,
    device: Any,
    dtype: torch.dtype,
    show: bool = True,
) -> TextEmbeddings:
    """The texts of a run, `ahead` or `live` by `encoding`. Text encoders are on `device` afterwards.

    name: the family's. folder: where what is encoded ahead is kept, by default one of the cache. dtype: in which the
    networks use the rows. Raises UserError for a folder that something else made, or too small a disk.
    """
    ahead = encoding == "ahead"
    made_by = manifest(name, pipeline, prompts, dtype) if ahead else {}
    for part in encoders(pipeline).values():
        if isinstance(part, torch.nn.Module):
            part.to(device)
    if not ahead:
        return OnlineTextEncoder(family, pipeline, prompts, device=device, dtype=dtype)
    place = Path(folder) if folder else default_folder(made_by)
    try:
        fill(place, made_by, family, pipeline, prompts, dtype=dtype, show=show)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{place}: encoded prompts cannot be kept there ({why}); name another folder by text_cache, or set"
            " text_encoding to live"
        ) from None
    return CachedTextEmbeddings(prompts, place, device=device, dtype=dtype)


def release(pipeline: Any) -> None:
    """Let go of text encoders and tokenizers."""
    pipeline.register_modules(**dict.fromkeys(encoders(pipeline)))


def restore(pipeline: Any, source: str, *, network: str) -> None:
    """Read text encoders and tokenizers again from `source`, a pipeline, where `release` let go of them or they are in
    another precision than the autoencoder. network: the name of the part that is not needed for it.
    """
    wide = pipeline.vae.dtype
    missing = [
        name
        for name, part in pipeline.components.items()
        if _is_encoder(name) and (part is None or getattr(part, "dtype", wide) != wide)
    ]
    if missing:
        whole = pipelines.load(source, dtype=wide, without=network)
        pipeline.register_modules(**{name: getattr(whole, name) for name in missing})


def encoders(pipeline: Any) -> dict[str, Any]:
    """Text encoders and tokenizers by name, as diffusers names them."""
    return {name: part for name, part in pipeline.components.items() if _is_encoder(name) and part is not None}


def _is_encoder(name: str) -> bool:
    return name.startswith(("text_encoder", "tokenizer"))


# ---- what made a cache -----------------------------------------------------------------------------------------------


def manifest(family: str, pipeline: Any, prompts: Prompts, dtype: torch.dtype) -> dict[str, Any]:
    """Everything that a cache's contents depend on."""
    return {
        "format": FORMAT,
        "family": family,
        "encoders": sha256(pipeline),
        "prompts": prompts.sha256(),
        "rows": len(prompts),
        "dtype": str(dtype).removeprefix("torch."),
        "rows_per_chunk": ROWS,
    }


def sha256(pipeline: Any) -> str:
    """Hash of the text encoders' configs and weights and of the tokenizers, as loaded."""
    digest = hashlib.sha256()
    for name, part in sorted(encoders(pipeline).items()):
        digest.update(name.encode())
        if isinstance(part, torch.nn.Module):
            part_config: Any = part.config
            config = {
                key: value
                for key, value in part_config.to_dict().items()
                if key[0] != "_" and key != "transformers_version"
            }
            digest.update(json.dumps(config, sort_keys=True, default=str).encode())
            for key, value in sorted(part.state_dict().items()):
                digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(memoryview(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
        else:
            template = getattr(part, "chat_template", None)
            part = getattr(part, "tokenizer", part)  # of a processor, which knows images too
            content = json.loads(part.backend_tokenizer.to_str())
            # The last call's, not the tokenizer's own.
            tokenizer = {key: value for key, value in content.items() if key not in ("padding", "truncation")}
            use = [part.model_max_length, part.padding_side, part.truncation_side, part.special_tokens_map]
            use += [template] if template else []
            digest.update(json.dumps([type(part).__name__, tokenizer, use], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def default_folder(made_by: Mapping[str, Any]) -> Path:
    """Where a cache goes that is given no folder."""
    return cache.folder("texts") / text_sha256(json.dumps(made_by, sort_keys=True))[:16]


# ---- filling it ------------------------------------------------------------------------------------------------------


def fill(
    folder: Path,
    made_by: Mapping[str, Any],
    family: Any,
    pipeline: Any,
    prompts: Prompts,
    *,
    dtype: torch.dtype,
    show: bool,
) -> None:
    """Make what is missing in `folder`, together with every other process that is at it;
    return when nothing is missing.
    """
    (folder / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "locks" / "manifest"):
        _claim(folder, made_by)
        if not (folder / "first.npy").is_file():
            rows, first = prompts.distinct()
            for name, array in (("rows", rows), ("first", first)):  # first.npy last: it stands for both
                with (folder / f"{name}.partial").open("wb") as file:
                    np.save(file, array)
                _place(folder / f"{name}.partial", folder / f"{name}.npy")
        if not is_whole(folder / "null.safetensors"):
            _write(folder / "null.safetensors", {key: value.to(dtype) for key, value in family.null(pipeline).items()})
    first = np.load(folder / "first.npy", mmap_mode="r")
    size = sum(value.nbytes for value in _read(folder / "null.safetensors").values())
    missing = [number for number in range(-(-len(first) // ROWS)) if not is_whole(chunk(folder, number))]
    rows_of = {number: first[number * ROWS : (number + 1) * ROWS] for number in missing}
    todo = sum(map(len, rows_of.values()))
    free = shutil.disk_usage(folder).free
    if todo * size > free:
        raise UserError(
            f"{folder}: {todo:,} prompts to encode take {todo * size / 1e9:,.3g} GB and {free / 1e9:,.3g} GB are free"
            " there; name a folder on a larger disk by text_cache, take fewer by max_prompts, or set text_encoding to"
            " live"
        )
    if not missing:
        return
    with ProgressLog("encoding prompts", len(first), start=len(first) - todo, unit="prompt", show=show) as progress:
        while missing:
            left = []
            for number in missing:
                try:
                    with FileLock(folder / "locks" / str(number), blocking=False):
                        if not is_whole(chunk(folder, number)):
                            texts = [prompts[i] for i in rows_of[number]]
                            _write(chunk(folder, number), encode(family, pipeline, texts, dtype))
                    progress.advance(len(rows_of[number]))
                except Timeout:  # another process makes it
                    left.append(number)
            if len(left) == len(missing):
                time.sleep(0.2)
            missing = left


def encode(family: Any, pipeline: Any, texts: list[str], dtype: torch.dtype) -> Conditioning:
    """Rows of `texts` on the CPU. Always in the same batches, so that whoever makes a file makes the same bytes."""
    n = family.texts_at_once
    # Nothing of a batch is left on the device when the next one comes.
    parts = [
        {key: row.to("cpu", dtype) for key, row in family.encode(pipeline, texts[i : i + n]).items()}
        for i in range(0, len(texts), n)
    ]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _claim(folder: Path, made_by: Mapping[str, Any]) -> None:
    """Write the manifest, or refuse a folder with another one."""
    path = folder / "manifest.json"
    try:
        existing = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        draft = folder / "manifest.partial"
        draft.write_text(json.dumps(made_by, indent=1), encoding="utf-8")
        _place(draft, path)
        return
    except ValueError:
        raise UserError(f"{path}: not a manifest of encoded prompts; name another folder by text_cache") from None
    differs = [what for key, what in CALLED.items() if existing.get(key) != made_by[key]]
    if differs:
        raise UserError(
            f"text_cache = {folder}: was made by {differs[0]}; name another folder, or leave text_cache out to have one"
            " found"
        )


def chunk(folder: Path, number: int) -> Path:
    """The file with the texts number * ROWS and on."""
    return folder / f"{number:05d}.safetensors"


def is_whole(path: Path) -> bool:
    """Whether a file is there, as long as its header says."""
    try:
        safe_open(path, framework="pt")
    except (FileNotFoundError, SafetensorError):
        return False
    return True


def _read(path: Path) -> Conditioning:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118  no mapping


def _write(path: Path, rows: Conditioning) -> None:
    draft = path.with_suffix(".partial")
    save_file({key: value.contiguous() for key, value in rows.items()}, draft)
    _place(draft, path)


def _place(draft: Path, path: Path) -> None:
    flush(draft)
    draft.replace(path)
    flush(path.parent)

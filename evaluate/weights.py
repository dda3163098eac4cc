"""Weights arrive as untrusted files: they are read as plain tensors only, matched key by key, and hashed."""

import hashlib
import pickle
import shutil
import tempfile
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from evaluate import layouts
from evaluate.console import console
from prompts.io import cache, hub
from prompts.io.errors import UserError, first_line
from prompts.io.files import text_sha256

M = TypeVar("M", bound=nn.Module)

REMEDY = "these are the weights of another model"
#: Endings of files of weights.
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
#: What loading a file that is damaged, or is not what its name says, raises in diffusers, transformers and peft.
DAMAGE = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, SafetensorError)


class Files:
    """Where a model's files come from: the hub, or `path` on this machine in its place."""

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def fetch(self, repo: str, filename: str, revision: str, *, local: str | None = None) -> Path:
        """`hub.fetch`: where the file lies, fetched if it must be. local: a file or its folder in place of the hub."""
        return hub.fetch(repo, filename, revision, local=local)

    def download(self, url: str, digest: str, *, what: str, local: str | None = None) -> Path:
        """`download`, or `hub.fetch`'s `local`, a file or its folder, in its place."""
        if local is None:
            return download(url, digest, what=what, kind="weights")
        return hub.fetch(url.rpartition("/")[0], url.rpartition("/")[2], "", local=local)

    def read(self, *paths: Path) -> dict[str, Tensor]:
        """The tensors of all these files (`read`)."""
        return {key: value for path in paths for key, value in read(path).items()}

    def build(self, make: Callable[[], M]) -> M:
        """What `make` makes, without memory for its parameters, which `fill` brings: for networks of billions."""
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=False):
            return make()

    def fill(self, module: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
        """Load `tensors` into `module`; a key or a shape that does not match is a UserError.

        Where a parameter has no memory yet, all keep the precision that they were published in.
        """
        load_strict(module, tensors, source)

    def sha256(self, *paths: Path, expected: str | None = None) -> str:
        """`sha256` of the files; one that is not as `expected` is a UserError."""
        digest = sha256(*paths)
        if expected not in (None, digest):
            raise UserError(
                f"{paths[0]}: sha256 {digest}, expected {expected}; fetch it again, or give the path of the file you"
                " mean"
            )
        return digest


class RandomWeights(Files):
    """The same without weights: configs and tokenizers are fetched, or made where `evaluate.layouts` knows them, and
    read; files of weights are neither, and networks are initialised at random.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(path)
        self._made = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, self._made, ignore_errors=True)

    def fetch(self, repo: str, filename: str, revision: str, *, local: str | None = None) -> Path:
        """`hub.fetch`, or a layout's file; a file of weights that is not local only by its name."""
        if local is None and filename.endswith(SUFFIXES):
            return Path(filename)
        fetched = partial(super().fetch, repo, filename, revision, local=local)
        return fetched() if local else layouts.instead(repo, fetched, self._made, filename)

    def download(self, url: str, digest: str, *, what: str, local: str | None = None) -> Path:
        """The file by its name alone."""
        return Path(url.rpartition("/")[2])

    def read(self, *paths: Path) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def fill(self, module: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
        """`randomise`."""
        randomise(allocate(module))

    def sha256(self, *paths: Path, expected: str | None = None) -> str:
        """Of no file: ""."""
        return ""


def sha256(*paths: Path) -> str:
    """Hex digest of a file's bytes; of several files, the digest of their digests in the order given."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else text_sha256("".join(digests))


def download(url: str, digest: str, *, what: str, kind: str) -> Path:
    """Where the file at `url` lies on this machine, fetched on first use and kept below the cache's folder `kind`.

    digest: its sha256, or as many of the first digits as are known. what: it is called. Raises UserError with the
    remedy.
    """
    path = cache.folder(kind) / url.rpartition("/")[2]
    if path.is_file() and sha256(path).startswith(digest):
        return path
    console.print(f"fetching {what}, from {url} into {path.parent}")
    remedy = f"run it again, or give a local copy of {path.name} with --weights METRIC=PATH"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=console.is_terminal)
    except RuntimeError as error:  # its word for another hash
        raise UserError(f"{url}: sent another file, or a part of it ({hub.reason(error)}); {remedy}") from None
    except (OSError, HTTPException) as error:
        raise UserError(f"{url}: cannot be fetched ({hub.reason(error)}); {remedy}") from None
    return path


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a pickle that holds nothing but tensors, on the CPU."""
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: a pickle that holds more than plain tensors; convert it to safetensors where you trust it"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path}: truncated or not a weights file ({first_line(error)}); fetch it again") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path}: not a mapping of names to tensors; give a file of weights")
    return content


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Load `tensors` into `module`; a key or a shape that does not match is a UserError.

    A module on the meta device takes the tensors themselves, in their own precision.
    """
    match(module, tensors, source)
    module.load_state_dict(dict(tensors), assign=any(parameter.is_meta for parameter in module.parameters()))


def allocate(module: nn.Module) -> nn.Module:
    """Parameters that are on the meta device get memory on the default device; buffers stay.

    Matrices have no numbers yet; vectors start where those of most layers do, weights at 1 and biases at 0.
    """
    for each in module.modules():
        for name, parameter in each.named_parameters(recurse=False):
            if parameter.is_meta:
                memory = torch.empty_like(parameter, device=torch.get_default_device())
                if parameter.dim() < 2:
                    memory.fill_(name == "weight")
                setattr(each, name, nn.Parameter(memory))
    return module


@torch.no_grad()
def randomise(module: nn.Module) -> nn.Module:
    """Matrices and kernels from N(0, 1 / fan-in), so that signals keep their size; vectors (norms,
    biases) shaken from where they start.

    Never zeros: a GPU computes with zeros faster than with numbers.
    """
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, (parameter.numel() / len(parameter)) ** -0.5)
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return module


def match(module: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Raise UserError unless `tensors` has the module's keys, every one and no other, with its shapes."""
    expected = module.state_dict()
    _match(
        {key: tuple(value.shape) for key, value in expected.items()},
        {key: tuple(value.shape) for key, value in tensors.items()},
        source,
    )


def check_files(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Check that safetensors files are whole, from their headers and sizes alone. Returns the shape of each tensor."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as content:
                shapes |= {key: tuple(content.get_slice(key).get_shape()) for key in content.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path}: truncated or not a safetensors file ({first_line(error)}); fetch it again"
            ) from None
    return shapes


def check_folder(folder: Path, module: nn.Module | None = None) -> None:
    """Check that a component's safetensors files are whole and, given the module made
    from them, that every key matched.

    diffusers and transformers draw at random what a file lacks; here that is an error.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: no .safetensors weights there; fetch or export the model again")
    shapes = check_files(files)
    if module is not None:
        _match({key: tuple(value.shape) for key, value in module.state_dict().items()}, shapes, folder)


def reason(error: BaseException) -> str:
    """The first line of what a library says of a file."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")


def refuse(missing: Collection[str], extra: Collection[str], source: object) -> None:
    """Raise UserError if any key is missing or not known."""
    if missing:
        raise UserError(f"{source}: key {min(missing)!r} is missing ({len(missing)} in all); {REMEDY}")
    if extra:
        raise UserError(f"{source}: key {min(extra)!r} is not known ({len(extra)} in all); {REMEDY}")


def _match(expected: Mapping[str, tuple[int, ...]], actual: Mapping[str, tuple[int, ...]], source: object) -> None:
    refuse(expected.keys() - actual.keys(), actual.keys() - expected.keys(), source)
    for key, shape in expected.items():
        if actual[key] != shape:
            raise UserError(f"{source}: {key!r} has shape {actual[key]}, expected {shape}; {REMEDY}")

"""What images are compared with: a folder of images, measured once, or a file of its moments.

A file of moments is `.safetensors`: `n`, `mean` `[D]`, `scatter` `[D, D]`, and beside them the protocol, the weights'
hash and the images' hash; or `.npz` with `mu` and `sigma`, as pytorch-fid, clean-fid and DMD2 write them, which says
none of these: it is taken for what its user calls it, and known by its own hash.
"""

import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from evaluate import weights as weight_files
from evaluate.distribution.frechet import FrechetMetric, Moments
from evaluate.distribution.samples import MakeReference, Sample
from evaluate.features import Extractor
from prompts.io import cache
from prompts.io.errors import UserError
from prompts.io.files import replace, text_sha256

CHUNK = 512  # images whose features are taken together
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
FILES = {".safetensors", ".npz"}
#: Where a file of moments keeps what it says of them, as JSON: in its metadata.
KEY = "moments"


def check(reference: str, name: str, real: str) -> None:
    """Raise UserError for what is neither a folder of images nor a file of moments."""
    if Path(reference).suffix not in FILES:
        reference_files(Path(reference), name, real)
    elif not Path(reference).is_file():
        raise UserError(f"{reference}: no such file of moments; 'evaluate moments' writes one")


def reference_files(folder: Path, name: str, real: str) -> list[Path]:
    """All images below `folder`. Raises UserError for fewer than two."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise UserError(f"{folder}: {len(files)} images there; {name} compares with {real}")
    return files


def read_image(path: Path) -> Tensor:
    """uint8 `[3, H, W]`, as clean-fid reads a file: converted to RGB, and not turned by what a camera noted."""
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    # A broken file makes Pillow raise any of these.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not an image that can be read ({error}); fetch it again or remove it") from None


def folder_features(files: list[Path], extractor: Extractor, *, home: Path | None = None) -> tuple[Tensor, str]:
    """Features of the images, in the order of their hashes, and the hash of all; kept under all that makes them.

    home: where they are kept.
    """
    from rich.progress import track

    from evaluate.console import console

    hashed = sorted(
        (weight_files.sha256(path), path) for path in track(files, "hashing the reference", console=console)
    )
    digest = text_sha256("".join(file_hash for file_hash, _ in hashed))
    paths = [path for _, path in hashed]

    def measured() -> Tensor:
        parts = track(range(0, len(paths), CHUNK), "measuring the reference", console=console)
        return torch.cat([extractor([read_image(path) for path in paths[i : i + CHUNK]]) for i in parts])

    return kept(extractor, digest, measured, home=home), digest


def kept(extractor: Extractor, of: str, measure: Callable[[], Tensor], *, home: Path | None = None) -> Tensor:
    """Features that were measured before by the same extractor `of` the same images, or that `measure` gives now.

    home: where they are kept, if it can be written to.
    """
    key = text_sha256(json.dumps([extractor.made_by, of], sort_keys=True))
    target = (home or cache.folder("features")) / f"{key}.safetensors"
    if target.is_file():
        return weight_files.read(target)["features"]
    features = measure()
    with suppress(UserError):
        replace(target, lambda draft: save_file({"features": features}, draft))
    return features


def folder_sample(files: list[Path], extractor: Extractor) -> MakeReference:
    """The images as a `Sample`, once for all metrics on the same features."""

    def measured() -> Sample:
        features, digest = folder_features(files, extractor)
        return Sample(features, torch.full((len(features),), -1), sha256=digest)

    return lambda prompts, images: extractor.latest("folder", tuple(files), measured)


def make_reference(reference: str, name: str, real: str, extractor: Extractor) -> MakeReference:
    """The images of a folder, for a metric that needs every one. Raises UserError for a file of moments."""
    if Path(reference).suffix in FILES:
        raise UserError(f"{reference}: moments, and {name} compares with every image; give the folder of {real}")
    return folder_sample(reference_files(Path(reference), name, real), extractor)


def frechet_metric(
    name: str,
    reference: str,
    extractor: Extractor,
    *,
    real: str,
    n_images: int | None,
    n_real: int | None = None,
) -> FrechetMetric:
    """The Fréchet distance to a folder of images, or to a file of moments."""
    make = partial(
        FrechetMetric, name, extractor, n_images=n_images, n_real=n_real, weights_sha256=extractor.weights_sha256
    )
    if Path(reference).suffix in FILES:
        moments = read_moments(Path(reference), name, extractor)
        return make(lambda: moments)
    sample = make_reference(reference, name, real, extractor)
    nothing = Sample(torch.empty(0), torch.empty(0))
    return make(lambda: extractor.latest("moments", reference, lambda: moments_of(sample((), nothing))))


def moments_of(images: Sample) -> Moments:
    """Moments of a reference, in parts: in float64 the whole would take as much memory again, twice."""
    parts = [Moments.of(part) for part in images.features.split(CHUNK)]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merge(part)
    return Moments(whole.n, whole.mean, whole.scatter, images.sha256)


def write_moments(path: Path, moments: Moments, *, protocol: str, weights_sha256: str) -> None:
    """The file that `read_moments` reads; the same moments are the same bytes."""
    tensors = {"n": torch.tensor(moments.n), "mean": moments.mean, "scatter": moments.scatter}
    said = {"protocol": protocol, "weights_sha256": weights_sha256, "images_sha256": moments.sha256}
    # One entry: the order of several is not the same twice.
    replace(path, lambda draft: save_file(tensors, draft, metadata={KEY: json.dumps(said)}))


def read_moments(path: Path, protocol: str, extractor: Extractor) -> Moments:
    """Moments for a protocol. Raises UserError for those of another protocol, other weights or another width."""
    moments = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path, protocol, extractor.weights_sha256)
    if moments.mean.shape != (extractor.width,) or moments.scatter.shape != (extractor.width, extractor.width):
        shapes = f"{tuple(moments.mean.shape)} and {tuple(moments.scatter.shape)}"
        raise UserError(f"{path}: moments of shapes {shapes}, and features of {protocol} are {extractor.width} numbers")
    return moments


def _read_safetensors(path: Path, protocol: str, weights_sha256: str) -> Moments:
    try:
        with safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {}).get(KEY, "{}"))
            n, mean, scatter = (file.get_tensor(key) for key in ("n", "mean", "scatter"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a file of moments ({weight_files.reason(error)}); write it again") from None
    for key, expected in {"protocol": protocol, "weights_sha256": weights_sha256}.items():
        if said.get(key) != expected:
            raise UserError(
                f"{path}: its {key} is {said.get(key)}, and {expected} is asked for; write it again with 'evaluate"
                f" moments FOLDER --metric {protocol}'"
            )
    return Moments(int(n), mean, scatter, said.get("images_sha256", ""))


def _read_npz(path: Path) -> Moments:
    """`mu` and `sigma`, which is unbiased: of a number of images that is not said, and not needed."""
    try:
        with np.load(path) as file:
            mean, covariance = (torch.from_numpy(file[key]).double() for key in ("mu", "sigma"))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: no moments 'mu' and 'sigma' there ({weight_files.reason(error)}); give a file that pytorch-fid,"
            " clean-fid or 'evaluate moments' wrote"
        ) from None
    # Of two, a scatter is the covariance.
    return Moments(2, mean, covariance, weight_files.sha256(path), counted=False)

"""FID (Heusel et al. 2017) under the two protocols that DMD2's code measures COCO with (Yin et al. 2024).

Each image, generated or real, is cropped to a centred square, resized by Lanczos to the protocol's size in 8 bits,
resized to 299 by clean-fid's `clean` mode (bicubic, antialiased, in float, clipped; Parmar et al. 2022), and goes
through FID's Inception.

weights: the published file of Inception's, fetched on first use. reference: the folder of real images; its moments are
cached under a hash of every file's bytes, the protocol, the weights, and the versions of what decodes and resizes.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluate import weights as weight_files
from evaluate.distribution import DistributionMetric, inception
from evaluate.distribution.frechet import Features, FrechetMetric, Moments, union
from prompts.io import cache as cached
from prompts.io.errors import UserError


@dataclass(frozen=True)
class Protocol:
    """size: pixels a side after the crop. n_images: generated ones. real: what the reference's folder holds."""

    size: int
    n_images: int
    real: str


PROTOCOLS = {
    "fid/coco2014-30k": Protocol(256, 30_000, "all 40,504 images of COCO's val2014"),
    "fid/coco-sdxl-10k": Protocol(512, 10_000, "the 10,000 images of DMD2's coco10k/subset"),
}
VARIANTS = {
    name: f"FID of {p.n_images:,} images at {p.size} x {p.size} against {p.real}; lower is better"
    for name, p in PROTOCOLS.items()
}
VERIFIED_BY = dict.fromkeys(VARIANTS, "clean-fid 0.1.35")

BATCH = 64
CHUNK = 512  # images whose moments are taken together
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@cache
def _resize() -> Callable[[np.ndarray], np.ndarray]:
    from cleanfid.resize import build_resizer

    resizer: Callable[[np.ndarray], np.ndarray] = build_resizer("clean")
    return resizer


def prepare(image: Tensor, size: int) -> Tensor:
    """One image, uint8 `[3, H, W]` -> float32 `[3, 299, 299]` in [0, 255]."""
    from torchvision.transforms.functional import center_crop

    whole = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    square = center_crop(whole, min(whole.size)).resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(_resize()(np.asarray(square))).permute(2, 0, 1)


def features_of(network: Callable[[Tensor], Tensor], size: int, device: Any) -> Features:
    """Images -> features of `network`. Float images are rounded to 8 bits, as files hold them."""

    @torch.no_grad()
    def features(images: Tensor | Sequence[Tensor]) -> Tensor:
        with ThreadPoolExecutor() as pool:
            ready = list(pool.map(lambda image: prepare(_bytes(image), size), images))
        return torch.cat([network(torch.stack(ready[i : i + BATCH]).to(device)) for i in range(0, len(ready), BATCH)])

    return features


def _bytes(image: Tensor) -> Tensor:
    return image if image.dtype == torch.uint8 else (image.clamp(0, 1) * 255).round().byte()


def reference_files(folder: Path, name: str) -> list[Path]:
    """All images below `folder`. Raises UserError for fewer than two."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise UserError(f"{folder}: {len(files)} images there; {name} compares with {PROTOCOLS[name].real}")
    return files


def reference_moments(
    folder: Path, name: str, features: Features, weights_sha256: str, *, home: Path | None = None
) -> Moments:
    """Moments of all images below `folder` under the protocol `name`. home: where they are cached."""
    from rich.console import Console
    from rich.progress import track

    files = reference_files(folder, name)
    console = Console(stderr=True)
    hashes = sorted(weight_files.sha256(path) for path in track(files, "hashing the reference", console=console))
    made_by = {package: version(package) for package in ("clean-fid", "pillow")}
    content = [name, asdict(PROTOCOLS[name]), weights_sha256, made_by, hashes]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    target = (home or cached.folder("frechet")) / f"{key}.safetensors"
    if target.is_file():
        stored = load_file(target)
        return Moments(int(stored["n"]), stored["mean"], stored["scatter"])

    def parts() -> Iterable[Moments]:
        for i in track(range(0, len(files), CHUNK), "measuring the reference", console=console):
            yield Moments.of(features([read_image(path) for path in files[i : i + CHUNK]]).cpu())

    moments = union(parts())
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(f".{os.getpid()}")
    stored = {"n": torch.tensor(moments.n), "mean": moments.mean, "scatter": moments.scatter}
    save_file(stored, temporary, metadata={"protocol": name, "weights": weights_sha256})
    temporary.replace(target)
    return moments


def read_image(path: Path) -> Tensor:
    """uint8 `[3, H, W]`, as clean-fid reads a file: converted to RGB, and not turned by what a camera noted."""
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not an image that can be read ({error}); fetch it again or remove it") from None


def load(name: str, device: Any, weights: str | None, reference: str | None) -> DistributionMetric:
    """A folder of real images is needed, which are measured when the distance is asked for.

    weights: a local copy of Inception's.
    """
    protocol = PROTOCOLS[name]
    if not reference:
        raise UserError(f"{name} compares with {protocol.real}; give their folder as the reference")
    reference_files(Path(reference), name)
    network, digest = load_inception(device, weights)
    features = features_of(network, protocol.size, device)
    moments = cache(partial(reference_moments, Path(reference), name, features, digest))
    return FrechetMetric(name, features, moments, weights_sha256=digest, n_images=protocol.n_images)


def load_inception(device: Any, weights: str | None) -> tuple[inception.Inception, str]:
    """The network from a file of weights, by default the one that is fetched and kept, and the file's sha256."""
    path = Path(weights) if weights else inception.fetch()
    return inception.load(path, device), weight_files.sha256(path)

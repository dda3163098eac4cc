"""Writes `fid.json`, with `tox run -e upstream-fid`: what clean-fid's own code makes of images
and of a network that seeds make.

Its sqrtm needs scipy < 1.18.
"""

import json
import platform
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

WIDTH = 8
#: DMD2's way to an image at these pixels a side; its patch FID; and images as they are.
WAYS: dict[str, int | str | None] = {
    "fid/coco2014-30k": 256, "fid/coco-sdxl-10k": 512, "patch-fid/dmd2": "patch", "fid/mjhq-30k": None
}  # fmt: skip


class StandIn(nn.Module):
    """In Inception's place, small and seeded: images `[B, 3, 299, 299]` in [0, 255] -> features `[B, WIDTH]`."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.kernel = torch.from_numpy(rng.normal(size=(WIDTH, 3, 9, 9)).astype(np.float32)) / 9

    def forward(self, images: Tensor) -> Tensor:
        scaled = (images - 128) / 128
        return nn.functional.conv2d(scaled, self.kernel, stride=5).relu().mean((2, 3))


def make_images(n: int, *, seed: int, contrast: float) -> list[np.ndarray]:
    """uint8 `[H, W, 3]`, or `[H, W]` for every seventh: waves and noise, 224 to 1024 pixels a
    side, most of them not square.
    """
    rng = np.random.default_rng(seed)
    images = []
    for i in range(n):
        height, width = (int(side) for side in rng.integers(224, 1025, 2))
        y, x = np.mgrid[0:height, 0:width] / 40
        waves = [np.sin(x * rng.uniform(0.2, 4) + y * rng.uniform(0.2, 4) + rng.uniform(0, 6)) for _ in range(3)]
        image = (
            127.5 + contrast * 90 * np.stack(waves, -1) + rng.normal(0, 20, (height, width, 3)) + rng.normal(0, 15, 3)
        )
        image = image.clip(0, 255).astype(np.uint8)
        images.append(image[..., 0] if i % 7 == 0 else image)
    return images


GENERATED, REAL = {"n": 24, "seed": 1, "contrast": 0.7}, {"n": 32, "seed": 2, "contrast": 1.0}


def save(images: list[np.ndarray], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


def original(generated: Path, real: Path, way: int | str | None) -> tuple[float, np.ndarray]:
    """The distance and the generated images' features, by clean-fid's functions and the
    transform that DMD2 gives them.
    """
    from cleanfid.fid import fid_from_feats, get_folder_features
    from torchvision.transforms.functional import center_crop

    def transform(image: np.ndarray) -> np.ndarray:
        whole = Image.fromarray(image)
        if way == "patch":
            return np.array(center_crop(whole, 299) if whole.size[0] >= 299 and whole.size[1] >= 299 else whole)
        return np.array(center_crop(whole, min(whole.size)).resize((way, way), Image.Resampling.LANCZOS))

    options = {"num_workers": 0, "batch_size": 8, "device": torch.device("cpu"), "mode": "clean", "verbose": False}
    a, b = (
        get_folder_features(str(folder), StandIn(), custom_image_tranform=transform if way else None, **options)
        for folder in (generated, real)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy calls one of clean-fid's arguments deprecated
        return float(fid_from_feats(a, b)), a


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        generated, real = (save(make_images(**made), Path(folder) / f"{made['seed']}") for made in (GENERATED, REAL))
        results = {name: original(generated, real, way) for name, way in WAYS.items()}
    packages = ("clean-fid", "scipy", "pillow", "numpy", "torch", "torchvision")
    content = {
        "made_by": "tests/upstream/make_fid.py",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "generated": GENERATED,
        "real": REAL,
        "fid": {name: distance for name, (distance, _) in results.items()},
        "mean_feature": {name: features.mean(0).tolist() for name, (_, features) in results.items()},
    }
    (Path(__file__).parent / "fid.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The Inception network of FID (Szegedy et al. 2015, as TensorFlow published it on 2015-12-05) up to its last pooling.

It is torchvision's with the blocks that clean-fid puts in: average pooling does not count the padding, and
the last block pools by maximum. Its weights are the plain file that clean-fid's own PyTorch network
fetches, and is known by its hash.

An image goes through a `Preparation`, is resized to 299 by clean-fid's `clean` mode (bicubic, antialiased, in float,
clipped; Parmar et al. 2022), and goes through the network.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from evaluate import weights
from evaluate.features import BATCH, Extractor, Images, shared
from evaluate.images import as_bytes

WIDTH = 2048  # features that it gives
PATCH = 299  # pixels a side that it takes
#: Of `pt_inception-2015-12-05-6726825d.pth`, 95,628,359 bytes.
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class Inception(nn.Module):
    """Images `[B, 3, 299, 299]` in [0, 255] -> features `[B, 2048]`, >= 0."""

    def __init__(self) -> None:
        from cleanfid.inception_pytorch import FIDInceptionA, FIDInceptionC, FIDInceptionE_1, FIDInceptionE_2
        from torchvision.models import inception_v3

        super().__init__()
        self.network = inception_v3(weights=None, aux_logits=False, init_weights=False)
        for name, inputs, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
            setattr(self.network, f"Mixed_{name}", FIDInceptionA(inputs, pooled))
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            setattr(self.network, f"Mixed_{name}", FIDInceptionC(768, width))
        self.network.Mixed_7b, self.network.Mixed_7c = FIDInceptionE_1(1280), FIDInceptionE_2(2048)
        self.network.fc = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Scaled as clean-fid does for images that are resized already: to [-1, 1)."""
        features: Tensor = self.network((images - 128) / 128)
        return features


def load(path: Path, device: Any = "cpu") -> Inception:
    """The network with the weights of the published file, frozen. Raises UserError for those of another."""
    inception = Inception()
    # Neither the classifier behind the features nor counts of training batches, which not
    # every copy has, are of any use.
    counts = {
        key: value for key, value in inception.network.state_dict().items() if key.endswith("num_batches_tracked")
    }
    tensors = {key: value for key, value in weights.read(path).items() if not key.startswith("fc.")}
    weights.load_strict(inception.network, counts | tensors, path)
    return inception.to(device).eval().requires_grad_(False)


def fetch() -> Path:
    """Where the published file of weights lies on this machine, fetched on first use and kept.

    Raises UserError with the remedy.
    """
    from cleanfid.inception_pytorch import FID_WEIGHTS_URL

    return weights.download(FID_WEIGHTS_URL, SHA256, what="Inception's weights, 91 MiB", kind="inception")


def load_network(device: Any, path: str | None) -> tuple[Inception, str]:
    """The network from a file of weights, by default the one that is fetched and kept, and the file's sha256."""
    file = Path(path) if path else fetch()
    return load(file, device), weights.sha256(file)


@dataclass(frozen=True)
class Preparation:
    """What is done to an image before clean-fid's resize.

    crop: `square` cuts out the centred square, `patch` the centred 299 x 299 where both edges have so many pixels, and
    nothing elsewhere, as DMD2 does. size: pixels a side that it is resized to after, by Lanczos in 8 bits.
    """

    crop: Literal["square", "patch"] | None = None
    size: int | None = None

    def __call__(self, image: Tensor) -> Tensor:
        """One image, uint8 `[3, H, W]` -> float32 `[3, 299, 299]` in [0, 255]."""
        from torchvision.transforms.functional import center_crop

        whole = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        if self.crop == "square":
            whole = center_crop(whole, min(whole.size))
        elif self.crop == "patch" and min(whole.size) >= PATCH:
            whole = center_crop(whole, PATCH)
        if self.size:
            whole = whole.resize((self.size, self.size), Image.Resampling.LANCZOS)
        return torch.from_numpy(_resize()(np.asarray(whole))).permute(2, 0, 1)


@cache
def _resize() -> Callable[[np.ndarray], np.ndarray]:
    from cleanfid.resize import build_resizer

    resizer: Callable[[np.ndarray], np.ndarray] = build_resizer("clean")
    return resizer


@shared
def extractor(device: Any, path: str | None, prepare: Preparation) -> Extractor:
    """The last pooling, `[B, 2048]`, of images under `prepare`; float ones are rounded to 8 bits, as in files."""
    network, digest = load_network(device, path)

    def features(images: Images) -> Tensor:
        with ThreadPoolExecutor() as pool:
            ready = list(pool.map(lambda image: prepare(as_bytes(image)), images))
        return torch.cat([network(torch.stack(ready[i : i + BATCH]).to(device)) for i in range(0, len(ready), BATCH)])

    made_by = {"network": "inception", **asdict(prepare)} | {"clean-fid": version("clean-fid")}
    return Extractor(features, weights_sha256=digest, made_by=made_by)

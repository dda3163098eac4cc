"""The Inception network of FID (Szegedy et al. 2015, as TensorFlow published it on 2015-12-05) up to its last pooling.

It is torchvision's with the blocks that clean-fid puts in: average pooling does not count the padding, and
the last block pools by maximum. Its weights are the plain file that clean-fid's own PyTorch network
fetches, and is known by its hash.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from evaluate import weights

WIDTH = 2048  # features that it gives
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
    from cleanfid.inception_pytorch import FID_WEIGHTS_URL as URL

    return weights.download(URL, SHA256, what="Inception's weights, 91 MiB", kind="inception")

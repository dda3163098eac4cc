"""FD-DINOv2 (Stein et al. 2023): the Fréchet distance on the features of DINOv2 ViT-L/14, which agrees with people
where FID does not. Any folder of real images is the reference; compare only numbers of one.
"""

from typing import Any

from evaluate.distribution import OF_YOUR_CHOICE, DistributionMetric
from evaluate.distribution.reference import frechet_metric
from evaluate.features import dinov2

VARIANTS = {"fd-dinov2": "Fréchet distance on DINOv2 ViT-L/14, to images of your choice; lower is better"}
REFERENCES = {"fd-dinov2": OF_YOUR_CHOICE}
VERIFIED_BY = {"fd-dinov2": "dinov2 0.0.1.dev2"}


def load(name: str, device: Any, weights: str | None, reference: str) -> DistributionMetric:
    """weights: a folder with the network's two files, in place of the hub's."""
    features = dinov2.extractor(device, weights)
    return frechet_metric(name, reference, features, real=REFERENCES[name], n_images=None)

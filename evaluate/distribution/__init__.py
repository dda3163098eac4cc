"""Distribution metrics: of a set of images, which no single image has. One file here is one family of them.

A family's file declares `VARIANTS`, name -> what it is in a sentence, the first being the family's default, and
`load(name, device, weights, reference)`, which returns a `DistributionMetric`. A sentence that says "lower is better"
makes it a metric of which less is better, for the gate and all comparisons. The file's stem is the family's name.
`VERIFIED_BY` is as in `evaluate.scorers`. `REFERENCES`, name -> what a folder of reference images holds, names the
variants that compare with images of the user's.

>>> from evaluate import distribution
>>> metric = distribution.load("fd-shapes")  # doctest: +SKIP
>>> metric.update(images, captions)  # doctest: +SKIP
>>> metric.compute()  # doctest: +SKIP
Estimate(value=0.31, low=0.27, high=0.35, n=512, note='')
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, distributed

from prompts.extensions import Variants, extended
from prompts.io.errors import UserError

__path__ = extended(__path__, "distribution")

#: What `REFERENCES` says where the images are nobody's but the user's.
OF_YOUR_CHOICE = "real images of your choice"


@dataclass(frozen=True)
class Estimate:
    """A metric's value, its 95 % interval (NaN where there is none), and the images behind it.

    note: what a reader must know before comparing it, '' if nothing. left_out: by the name of a group of prompts, how
    many images it has and the metric's value of all images but those; two runs of one suite have the same groups, so
    that a difference of theirs has an interval too. reference_sha256: of the images, or the file of their moments, that
    was compared with; '' where nothing of the user's was.
    """

    value: float
    low: float
    high: float
    n: int
    note: str = ""
    left_out: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    reference_sha256: str = ""


class DistributionMetric(ABC):
    """Gathers what it needs of images as they come. In what order and to which process
    they come changes rounding alone.

    It is no `torchmetrics.Metric`, whose states are tensors that are reduced one by one: here a state may hold text,
    its parts may merge together only, and a process without an image gathers like any other.

    protocol: name of what is computed. Numbers of different protocols are never compared.
    within_prompt: whether it compares images of one prompt, and so has no value where each prompt has one.
    weights_sha256: of the file of the network whose features are taken.
    state: all that has been gathered; picklable, and never changed in place.
    """

    within_prompt: ClassVar[bool] = False
    protocol: str
    weights_sha256: str
    state: Any

    @abstractmethod
    def update(self, images: Tensor | Sequence[Tensor], prompts: Sequence[str]) -> None:
        """Take in images `[B, 3, H, W]`, float in [0, 1] or uint8, or a list of `[3, H, W]`, and the prompt of each."""

    @abstractmethod
    def merge(self, other: "DistributionMetric") -> None:
        """Take in all that `other` has gathered."""

    @abstractmethod
    def compute(self) -> Estimate:
        """The metric of everything so far. Raises ValueError for too few images."""


def gather(metric: DistributionMetric) -> DistributionMetric:
    """The metric of all processes' images, on each process; every process must call it.
    `metric` itself stays as it is.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return metric
    states: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(states, metric.state)
    parts = [copy.copy(metric) for _ in states]
    for part, state in zip(parts, states, strict=True):
        part.state = state
    for part in parts[1:]:
        parts[0].merge(part)
    return parts[0]


_files = Variants(__name__, what="distribution metric")
variants, verified, resolve = _files.variants, _files.verified, _files.resolve


def lower_is_better(name: str) -> bool:
    """Whether the metric's sentence in `VARIANTS` says so."""
    return "lower is better" in variants().get(name, "")


def references() -> dict[str, str]:
    """What a folder of reference images holds, by the name of each variant that compares with one."""
    modules = _files.files().values()
    return {name: real for module in modules for name, real in getattr(module, "REFERENCES", {}).items()}


def load(
    name: str,
    *,
    device: Any = "cpu",
    weights: str | None = None,
    reference: str | None = None,
) -> DistributionMetric:
    """The distribution metric called `name` (a variant, or a family for its default), with nothing gathered yet.

    weights: a local path in place of the metric's own. reference: a folder of the images to compare with, for those
    that compare with images, or for a Fréchet distance a file of their moments. Raises UserError for an unknown name,
    and for what the metric needs or does not take.
    """
    variant, module = _files.find(name)
    real = references().get(variant)
    if real and not reference:
        raise UserError(f"{variant} compares with {real}; give their folder as the reference")
    if reference and not real:
        raise UserError(f"{variant} compares with no images of yours; leave out {reference}")
    if real and reference:  # before weights are fetched
        from evaluate.distribution.reference import check

        check(reference, variant, real)
    metric: DistributionMetric = module.load(variant, device, weights, reference)
    return metric

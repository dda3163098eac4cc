"""Distribution metrics: of a set of images, which no single image has. One file here is one family of them.

A family's file declares `VARIANTS`, name -> what it is in a sentence, the first being the family's default, and
`load(name, device, weights, reference)`, which returns a `DistributionMetric`. The file's stem is the family's name.
`VERIFIED_BY` is as in `evaluate.scorers`.

>>> from evaluate import distribution
>>> metric = distribution.load("fd-shapes")  # doctest: +SKIP
>>> metric.update(images, captions)  # doctest: +SKIP
>>> metric.compute()  # doctest: +SKIP
Estimate(value=0.31, low=0.27, high=0.35, n=512, note='')
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, distributed

from prompts.extensions import Variants, extended

__path__ = extended(__path__, "distribution")


@dataclass(frozen=True)
class Estimate:
    """A metric's value, its 95 % interval (NaN where there is none), and the images behind it.

    note: what a reader must know before comparing it, '' if nothing.
    """

    value: float
    low: float
    high: float
    n: int
    note: str = ""


class DistributionMetric(ABC):
    """Gathers what it needs of images as they come. In what order and to which process
    they come changes rounding alone.

    It is no `torchmetrics.Metric`, whose states are tensors that are reduced one by one: here a state may hold text,
    its parts may merge together only, and a process without an image gathers like any other.

    protocol: name of what is computed. Numbers of different protocols are never compared.
    weights_sha256: of the file of the network whose features are taken.
    state: all that has been gathered; picklable, and never changed in place.
    """

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


def t_interval(value: float, error: float, freedom: int) -> tuple[float, float]:
    """`value` and Student's t half-widths of 95 % around it; NaN without a degree of freedom."""
    from scipy import stats

    half = float(stats.t.ppf(0.975, freedom)) * error if freedom > 0 else math.nan
    return value - half, value + half


_files = Variants(__name__, what="distribution metric")
variants, verified, resolve = _files.variants, _files.verified, _files.resolve


def lower_is_better(name: str) -> bool:
    """Whether the metric's sentence in `VARIANTS` says so."""
    return "lower is better" in variants().get(name, "")


def load(
    name: str,
    *,
    device: Any = "cpu",
    weights: str | None = None,
    reference: str | None = None,
) -> DistributionMetric:
    """The distribution metric called `name` (a variant, or a family for its default), with nothing gathered yet.

    weights: a local path in place of the metric's own. reference: a folder of the images to compare with, for those
    that compare with images. Raises UserError for an unknown name, and for what the metric needs or does not take.
    """
    variant, module = _files.find(name)
    metric: DistributionMetric = module.load(variant, device, weights, reference)
    return metric

"""Distribution metrics that need the features of every image, not their moments alone."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evaluate.distribution import DistributionMetric, Estimate
from evaluate.distribution.jackknife import GROUPS, LeaveOut, group_of, jackknife
from evaluate.features import Batch


@dataclass(frozen=True, eq=False)
class Sample:
    """Features `[N, D]` of images, and the group of prompts `[N]` of each, -1 for images that stay whatever is left
    out.

    units: which of a sample and of what it is compared with are not independent, by number `[N]`; None where all are.
    sha256: of the images, '' where nobody asks.
    """

    features: Tensor
    groups: Tensor
    units: Tensor | None = None
    sha256: str = ""

    def __len__(self) -> int:
        return len(self.features)

    def at(self, rows: Tensor) -> "Sample":
        """Some images, by their places."""
        units = None if self.units is None else self.units[rows]
        return replace(self, features=self.features[rows], groups=self.groups[rows], units=units)

    def without(self, group: int | None) -> Tensor:
        """Which images are left `[N]`."""
        return self.groups != group if group is not None else torch.ones_like(self.groups, dtype=torch.bool)


#: One sample, or images and a reference -> the metric without a group.
Statistic = Callable[..., LeaveOut]
#: Prompts of the images and the images -> what they are compared with.
MakeReference = Callable[[Sequence[str], Sample], Sample]


@dataclass(frozen=True, eq=False)
class Rows:
    """Features `[N, D]`, with the prompt of each image and a digest of its pixels."""

    prompts: tuple[str, ...]
    digests: tuple[bytes, ...]
    features: Tensor

    @classmethod
    def union(cls, parts: "Sequence[Rows]") -> "Rows":
        """All of `parts`, one at least, in an order that is the same however they came."""
        prompts = [prompt for part in parts for prompt in part.prompts]
        digests = [digest for part in parts for digest in part.digests]
        order = sorted(range(len(prompts)), key=lambda i: (prompts[i], digests[i]))
        features = torch.cat([part.features for part in parts])[order]
        return cls(tuple(prompts[i] for i in order), tuple(digests[i] for i in order), features)


class SampleMetric(DistributionMetric):
    """A statistic of images' features, or of theirs and a reference's.

    statistic: of what `Sample`s. reference: makes the second one, None where there is none; it may take long, and is
    asked when the metric is computed. n_images, n_real: how many images the protocol takes, and how many its reference
    has, None for any number. least: how many there must be. bounds: what the metric cannot leave. note: what to say of
    images and a reference of these sizes. state: what was gathered, in parts.
    """

    def __init__(
        self,
        protocol: str,
        features: Callable[[Tensor | Sequence[Tensor]], Tensor],
        statistic: Statistic,
        reference: MakeReference | None = None,
        *,
        weights_sha256: str,
        n_images: int | None = None,
        n_real: int | None = None,
        least: int = 2,
        groups: int = GROUPS,
        bounds: tuple[float, float] = (-math.inf, math.inf),
        note: Callable[[int, int], str] = lambda images, reference: "",
    ) -> None:
        self.protocol, self.features, self.weights_sha256 = protocol, features, weights_sha256
        self.statistic, self.reference, self.least = statistic, reference, least
        self.n_images, self.n_real = n_images, n_real
        self.groups, self.bounds, self.note = groups, bounds, note
        self.state: tuple[Rows, ...] = ()

    @torch.no_grad()
    def update(self, images: Tensor | Sequence[Tensor], prompts: Sequence[str]) -> None:
        """Add images' features."""
        if len(images) != len(prompts):
            raise ValueError(
                f"{self.protocol}: {len(images)} images but {len(prompts)} prompts; give one prompt per image"
            )
        if len(images):
            batch = images if isinstance(images, Batch) else Batch(list(images))
            self.state = (*self.state, Rows(tuple(prompts), batch.digests, self.features(images)))

    def merge(self, other: DistributionMetric) -> None:
        """Add another's features."""
        assert self.protocol == other.protocol, f"{self.protocol} cannot take in {other.protocol}"
        self.state = (*self.state, *other.state)

    @torch.no_grad()
    def compute(self) -> Estimate:
        """The metric of all, in the order of prompts and pixels: the same images have the same value."""
        n = sum(len(part.prompts) for part in self.state)
        if n < self.least:
            raise ValueError(f"{self.protocol}: {n} images; it needs at least {self.least}")
        rows = Rows.union(self.state)
        groups = torch.tensor([group_of(prompt, self.groups) for prompt in rows.prompts])
        number = {prompt: i for i, prompt in enumerate(dict.fromkeys(rows.prompts))}
        samples = [Sample(rows.features, groups, torch.tensor([number[prompt] for prompt in rows.prompts]))]
        if self.reference:
            samples.append(self.reference(rows.prompts, samples[0]))
        estimate = jackknife(Counter(groups.tolist()), self.statistic(*samples), groups=self.groups, bounds=self.bounds)
        notes = [estimate.note, self.note(n, len(samples[-1])), too_few(n, self.n_images)]
        notes.append(another_reference(len(samples[-1]), self.n_real))
        return replace(estimate, note="; ".join(filter(None, notes)), reference_sha256=samples[-1].sha256)


def too_few(n: int, expected: int | None) -> str:
    """What to say of another number of images than a protocol takes."""
    return f"{n:,} images where the protocol takes {expected:,}" if expected not in (None, n) else ""


def another_reference(n: int, expected: int | None) -> str:
    """The same of the images that it compares with."""
    return f"a reference of {n:,} images where the protocol's has {expected:,}" if expected not in (None, n) else ""

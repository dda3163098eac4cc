"""The squared maximum mean discrepancy of two samples under a kernel (Gretton et al. 2012), without any group of
prompts.

The kernel is summed once over the pairs of each two groups; leaving one out adds up the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from evaluate.distribution.samples import Sample

#: Features `[N, D]` and `[M, D]` -> `[N, M]`, in float64.
Kernel = Callable[[Tensor, Tensor], Tensor]
#: Rows of a matrix of kernels at a time.
ROWS = 1024


@dataclass(frozen=True, eq=False)
class Pairs:
    """Sums of a kernel over pairs by group `[..., G, G]`, over those of one unit `[..., G]`, and how many these are.

    The first of the G groups is of what is never left out.
    """

    sums: Tensor
    own: Tensor
    n_own: Tensor

    @classmethod
    def of(cls, kernel: Kernel, x: Sample, y: Sample, groups: int) -> "Pairs":
        """Of a row of one sample and a row of the other."""
        assert x.units is not None and y.units is not None
        of_x, of_y = (F.one_hot(side.groups + 1, groups + 1).double() for side in (x, y))
        wide, parts = y.features.double(), []
        for rows in torch.arange(len(x)).split(ROWS):
            values, same = kernel(x.features[rows].double(), wide), torch.eq(x.units[rows, None], y.units)
            member = of_x[rows].T
            parts.append((member @ values @ of_y, member @ (values * same).sum(1), member @ same.sum(1).double()))
        return cls(*(torch.stack(each).sum(0) for each in zip(*parts, strict=True)))

    def mean(self, keep: Tensor, pairs: Tensor, *, without_own: bool) -> Tensor:
        """Over pairs of the groups to keep `[G]`, of which there are so many; NaN where none is left."""
        total = self.sums @ keep @ keep
        return (total - self.own @ keep) / (pairs - self.n_own @ keep) if without_own else total / pairs


@dataclass(frozen=True, eq=False)
class KernelSums:
    """What the discrepancy of two samples is made of; of many pairs of samples `[S, ...]`."""

    images: Pairs
    reference: Pairs
    between: Pairs
    counts: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, kernel: Kernel, images: Sample, reference: Sample, groups: int) -> "KernelSums":
        """groups: how many there can be.

        Images of one unit, which are not independent, are told apart from others only where both samples name theirs:
        elsewhere each image is a unit of its own.
        """
        if images.units is None or reference.units is None:
            n, m = len(images), len(reference)
            images, reference = (
                replace(side, units=units)
                for side, units in ((images, torch.arange(n)), (reference, torch.arange(n, n + m)))
            )
        counts = [F.one_hot(side.groups + 1, groups + 1).double().sum(0) for side in (images, reference)]
        within = [Pairs.of(kernel, side, side, groups) for side in (images, reference)]
        return cls(within[0], within[1], Pairs.of(kernel, images, reference, groups), (counts[0], counts[1]))

    @classmethod
    def stack(cls, many: "Sequence[KernelSums]") -> "KernelSums":
        """Of many pairs of samples."""

        def stacked(parts: Sequence[Pairs]) -> Pairs:
            return Pairs(*(torch.stack([getattr(each, field.name) for each in parts]) for field in fields(Pairs)))

        n, m = (torch.stack(each) for each in zip(*(one.counts for one in many), strict=True))
        return cls(
            stacked([each.images for each in many]),
            stacked([each.reference for each in many]),
            stacked([each.between for each in many]),
            (n, m),
        )

    def mmd(self, left_out: int | None, *, unbiased: bool) -> Tensor:
        """Without the group `[...]`; NaN where too few images are left. unbiased: of pairs of two units alone."""
        keep = torch.ones(self.counts[0].shape[-1], dtype=torch.float64)
        if left_out is not None:
            keep[left_out + 1] = 0
        n, m = (count @ keep for count in self.counts)
        return (
            self.images.mean(keep, n * n, without_own=unbiased)
            + self.reference.mean(keep, m * m, without_own=unbiased)
            - 2 * self.between.mean(keep, n * m, without_own=unbiased)
        )

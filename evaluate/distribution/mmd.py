"""The squared maximum mean discrepancy of two samples under a kernel (Gretton et al. 2012), without any group of
prompts.

The kernel is summed once over the pairs of each two groups; leaving one out adds up the others.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from evaluate.distribution.samples import Sample

#: Features `[N, D]` and `[M, D]` -> `[N, M]`, in float64.
Kernel = Callable[[Tensor, Tensor], Tensor]
#: Rows of a matrix of kernels at a time.
ROWS = 1024


@dataclass(frozen=True, eq=False)
class KernelSums:
    """Of a kernel over pairs, of images and of a reference: `[..., G, G]` within each and between them, `[..., G]` of
    each with itself, and counts. The first of the G groups is of what is never left out.
    """

    images: Tensor
    reference: Tensor
    between: Tensor
    own_images: Tensor
    own_reference: Tensor
    n_images: Tensor
    n_reference: Tensor

    @classmethod
    def of(cls, kernel: Kernel, images: Sample, reference: Sample, groups: int) -> "KernelSums":
        """groups: how many there can be."""
        x, y = images.features.double(), reference.features.double()
        of_x, of_y = (F.one_hot(side.groups + 1, groups + 1).double() for side in (images, reference))
        (xx, own_x), (yy, own_y) = (_within(kernel, *side) for side in ((x, of_x), (y, of_y)))
        rows = zip(x.split(ROWS), of_x.split(ROWS), strict=True)
        between = torch.stack([member.T @ kernel(part, y) @ of_y for part, member in rows]).sum(0)
        return cls(xx, yy, between, own_x, own_y, of_x.sum(0), of_y.sum(0))

    @classmethod
    def stack(cls, many: "Sequence[KernelSums]") -> "KernelSums":
        """Of many pairs of samples `[S, ...]`."""
        return cls(*(torch.stack([getattr(each, field.name) for each in many]) for field in fields(cls)))

    def mmd(self, left_out: int | None, *, unbiased: bool) -> Tensor:
        """Without the group `[...]`; NaN where too few images are left."""
        keep = torch.ones(self.n_images.shape[-1], dtype=torch.float64)
        if left_out is not None:
            keep[left_out + 1] = 0
        n, m = self.n_images @ keep, self.n_reference @ keep
        value = -2 * (self.between @ keep @ keep) / (n * m)
        for size, pairs, own in ((n, self.images, self.own_images), (m, self.reference, self.own_reference)):
            total = pairs @ keep @ keep
            value = value + ((total - own @ keep) / (size * (size - 1)) if unbiased else total / size**2)
        return value.where(torch.minimum(n, m) > unbiased, math.nan)


def _within(kernel: Kernel, x: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over pairs of one sample, and over each with itself, by group."""
    pairs, own = [], []
    for first in range(0, len(x), ROWS):
        block, rows = kernel(x[first : first + ROWS], x), members[first : first + ROWS]
        pairs.append(rows.T @ block @ members)
        own.append(rows.T @ block[:, first:].diagonal())
    return torch.stack(pairs).sum(0), torch.stack(own).sum(0)

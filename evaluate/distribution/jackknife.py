"""Intervals of metrics of a set of images, by leaving out a group of prompts at a time."""

import hashlib
import math
from collections.abc import Callable, Mapping

import numpy as np

from evaluate.distribution import Estimate
from evaluate.stats import jackknife_error, t_interval

#: Parts of a set, each left out once. Few where a value is dear; more give a steadier interval.
GROUPS, MANY_GROUPS = 10, 50

#: A metric without one group's images, or of all for None; NaN where those that are left are too few.
LeaveOut = Callable[[int | None], float]


def group_of(prompt: str, groups: int = GROUPS) -> int:
    """Which of `groups` a prompt's images belong to, whatever the process or order they come in.

    It depends on the prompt's text alone, so that two runs of one suite leave out the same prompts together.
    """
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % groups


def leave_out(parts: Mapping[int, int], value_without: LeaveOut, groups: int) -> dict[str, tuple[int, float]]:
    """`Estimate.left_out`: by a group's name, its images and the value of all others.

    parts: images by group. Empty where some group cannot be left out.
    """
    n = sum(parts.values())
    if len(parts) < 2 or min(n - part for part in parts.values()) < 2:
        return {}
    left_out = {f"{group}/{groups}": (part, value_without(group)) for group, part in sorted(parts.items())}
    return left_out if all(math.isfinite(value) for _, value in left_out.values()) else {}


def jackknife(
    parts: Mapping[int, int],
    value_without: LeaveOut,
    *,
    groups: int = GROUPS,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """The value of a set that falls into groups, with an interval for it.

    parts: images by group. groups: how many there can be. bounds: what the metric cannot leave. The interval is the
    delete-a-group jackknife for unequal groups (Busing, Meijer and van der Leeden 1999) with Student's t of one degree
    fewer than there are groups. Prompts stay whole, so that it is right for several images per prompt. It says where
    the value of another n images would lie. It does not remove a value's bias, which for a distance falls as 1/n:
    compare only equal n (Chong and Forsyth 2020).
    """
    n, value = sum(parts.values()), value_without(None)
    left_out = leave_out(parts, value_without, groups)
    if not left_out:
        return Estimate(value, math.nan, math.nan, n, "no interval: too few prompts")
    counts, without = (np.array(column, float) for column in zip(*left_out.values(), strict=True))
    error = jackknife_error(value, without, counts)
    low, high = t_interval(value, error, len(parts) - 1)
    return Estimate(value, max(low, bounds[0]), min(high, bounds[1]), n, left_out=left_out)

"""Two runs of one suite, prompt by prompt."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluate.results import sets
from evaluate.results.csv_io import write_csv
from evaluate.results.records import Records
from evaluate.stats import paired_difference, percent, t_interval
from prompts.io.errors import UserError
from prompts.io.files import write_as, write_json


class ComparedMetric(NamedTuple):
    """One metric, of all prompts (group "") or of one group: means of A and B over n prompts,
    and the paired difference B - A.

    low, high: 95 % interval of the difference by itself, not corrected for the number of rows; NaN below two prompts.
    win_rate: share of prompts on which B is higher, ties counted half, with its 95 % interval from win_low to win_high;
    NaN of a distribution metric, whose interval is that of `sets.set_difference`, NaN where there is none.
    """

    metric: str
    group: str
    n: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    win_rate: float
    win_low: float
    win_high: float


WINS = ("win_rate", "win_low", "win_high")


def mismatch(a: Records, b: Records) -> str | None:
    """Why scores of `a` and `b` cannot be compared, in words; None where they can."""
    for field in ("suite", "suite_sha256"):
        if a.meta[field] != b.meta[field]:
            return f"{field} is {a.meta[field]} in one and {b.meta[field]} in the other"
    of_sets = [run.meta.get("distribution", {}) for run in (a, b)]
    ours, theirs = (
        run.meta["protocols"] | {name: e["weights_sha256"] for name, e in estimates.items()}
        for run, estimates in zip((a, b), of_sets, strict=True)
    )
    for name in ours.keys() & theirs.keys():
        if ours[name] != theirs[name]:
            return f"{name} was computed with weights {ours[name]} in one and {theirs[name]} in the other"
        if a.meta.get("macro", {}).get(name) != b.meta.get("macro", {}).get(name):
            return f"{name} is averaged over images in one and over groups of prompts in the other"
        references = [estimates.get(name, {}).get("reference_sha256", "") for estimates in of_sets]
        if all(references) and references[0] != references[1]:
            return f"{name} compares with other reference images in one than in the other"
    if not ours.keys() & theirs.keys():
        return f"no protocol is in both ({', '.join(ours) or 'none'}; {', '.join(theirs) or 'none'})"
    return None


def compare(a: Records, b: Records, *, by: str | None = None) -> list[ComparedMetric]:
    """A row for each protocol that both have, and with `by` for each value of that group of prompts too; then one for
    each distribution metric that both have.

    A prompt's score is the mean over its images; prompts without one in A or in B are left out. Raises UserError where
    suites, protocols or weights differ.
    """
    if reason := mismatch(a, b):
        raise UserError(f"{reason}, so they cannot be compared; run both on the same suite with the same metrics")
    groups = groups_of(b, by) if by else {}
    left, right = a.by_prompt(), b.by_prompt()
    shared = left.index.intersection(right.index)
    labels = np.array([groups.get(name, "") for name in shared], dtype=object)
    rows = []
    for metric in (name for name in a.meta["protocols"] if name in b.meta["protocols"]):
        x, y = (side.loc[shared, metric].to_numpy(float) for side in (left, right))
        finite = np.isfinite(x) & np.isfinite(y)
        whole = _row(metric, "", x[finite], y[finite])
        if metric in b.meta.get("macro", {}):
            values = (b.values(metric, side.loc[shared[finite], metric]) for side in (left, right))
            # The share of wins stays that of prompts.
            whole = _row(metric, "", *values)._replace(**{name: getattr(whole, name) for name in WINS})
        rows.append(whole)
        for label in sorted(set(groups.values())):
            chosen = finite & (labels == label)
            rows.append(_row(metric, label, x[chosen], y[chosen]))
    return rows + [_row_of_set(metric, a, b) for metric in sets.shared_metrics(a, b)]


def groups_of(records: Records, by: str) -> dict[str, str]:
    """Each prompt's value of the group `by`."""
    prefix = "group."
    names = [column.removeprefix(prefix) for column in records.frame if column.startswith(prefix)]
    if by not in names:
        raise UserError(
            f"--by {by}: the suite {records.meta['suite']} has no such group; it has {', '.join(names) or 'none'}"
        )
    values = records.frame.set_index("id")[prefix + by].fillna("").astype(str).replace("", "(none)")
    return dict(values.items())


def _row(metric: str, group: str, a: np.ndarray, b: np.ndarray) -> ComparedMetric:
    n = len(a)
    if n < 2:
        means = (float(a[0]), float(b[0])) if n else (math.nan, math.nan)
        return ComparedMetric(metric, group, n, *means, means[1] - means[0], *[math.nan] * 5)
    return ComparedMetric(metric, group, n, float(a.mean()), float(b.mean()), *paired_difference(a, b))


def _row_of_set(metric: str, a: Records, b: Records) -> ComparedMetric:
    estimates = [run.meta["distribution"][metric] for run in (a, b)]
    one, other = (estimate["value"] for estimate in estimates)
    difference = other - one if sets.as_many(a, b, metric) else math.nan
    low = high = math.nan
    if not sets.unpaired(a, b, metric):
        found = sets.set_difference(a, b, metric)
        low, high = t_interval(found.difference, found.error, found.freedom)
    n = len(set(a.frame["id"]) & set(b.frame["id"]))
    return ComparedMetric(metric, "", n, one, other, difference, low, high, *[math.nan] * 3)


def summary(a: Records, b: Records, rows: Sequence[ComparedMetric]) -> dict[str, Any]:
    """What is written as JSON."""
    return {
        "suite": a.meta["suite"],
        "suite_sha256": a.meta["suite_sha256"],
        "a": a.meta["model"],
        "b": b.meta["model"],
        "level": 0.95,
        "rows": [without_nan(row._asdict()) for row in rows],
    }


def without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for JSON, where NaN is null."""
    return {name: None if value != value else value for name, value in row.items()}


def write(path: Path, a: Records, b: Records, rows: Sequence[ComparedMetric]) -> None:
    """Write the comparison as `path`'s ending says: .json or .csv."""
    named = {"suite": a.meta["suite"], "model_a": a.meta["model"], "model_b": b.meta["model"]}
    write_as(
        path,
        {
            ".json": lambda path: write_json(path, summary(a, b, rows)),
            ".csv": lambda path: write_csv([named | row._asdict() for row in rows], path),
        },
    )


def show(a: Records, b: Records, rows: Sequence[ComparedMetric]) -> None:
    """Print the table, and under it what it leaves out."""
    from rich.table import Table

    from evaluate.console import printer

    grouped = any(row.group for row in rows)
    table = Table(
        title=f"{a.meta['suite']}: A = {a.meta['model']}, B = {b.meta['model']}",
        caption=(
            "difference B - A with its 95 % interval, paired by prompt; wins: share of prompts on which B is higher"
        ),
    )
    for column in ("metric", *(["group"] if grouped else []), "prompts", "A", "B", "difference", "wins"):
        table.add_column(column, justify="left" if column in ("metric", "group") else "right")
    for row in rows:
        interval = "" if math.isnan(row.difference) else f"{row.difference:+.4f}"
        interval += "" if math.isnan(row.low) else f" [{row.low:+.4f}, {row.high:+.4f}]"
        group = [row.group or "all"] if grouped else []
        table.add_row(
            row.metric,
            *group,
            f"{row.n:,}",
            f"{row.a:.4f}",
            f"{row.b:.4f}",
            interval,
            "" if math.isnan(row.win_rate) else percent(row.win_rate, row.win_low, row.win_high),
        )
    console = printer()
    console.print(table)
    for name, records in (("A", a), ("B", b)):
        if records.missing:
            console.print(f"{name} is incomplete: {records.missing}")
    for metric in sets.shared_metrics(a, b):
        if reason := sets.unpaired(a, b, metric):
            console.print(f"{metric} has no interval: {reason}")
    for name, one, other in (("A", a, b), ("B", b, a)):
        if alone := [protocol for protocol in one.meta["protocols"] if protocol not in other.meta["protocols"]]:
            console.print(f"only in {name}: {', '.join(alone)}")

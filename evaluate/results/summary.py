"""What one run measured: each metric's mean with its standard error, of all prompts and by a group of them."""

import math
from pathlib import Path
from typing import NamedTuple

from evaluate.results.compare import groups_of
from evaluate.results.csv_io import write_csv
from evaluate.results.records import Records
from evaluate.stats import clustered_mean
from prompts.io.files import write_as


class SummarisedMetric(NamedTuple):
    """One metric, of all prompts (group "") or of one group: n images, mean, and its
    standard error, clustered by prompt.

    A distribution metric has no standard error but a 95 % interval, and no groups.
    """

    metric: str
    group: str
    n: int
    mean: float
    error: float
    low: float = math.nan
    high: float = math.nan


def summarise(records: Records, *, by: str | None = None) -> list[SummarisedMetric]:
    """A row per metric, and with `by` one for each value of that group of prompts too."""
    frame = records.frame
    groups = groups_of(records, by) if by else {}
    labels = frame["id"].map(groups)
    rows = []
    for metric in records.meta["protocols"]:
        scores, ids = frame[f"score.{metric}"].to_numpy(), frame["id"].to_numpy()
        mean, error, n = records.mean(metric)
        rows.append(SummarisedMetric(metric, "", n, mean, error))
        for label in sorted(set(groups.values())):
            chosen = (labels == label).to_numpy()
            mean, error, n = clustered_mean(scores[chosen], ids[chosen])
            rows.append(SummarisedMetric(metric, label, n, mean, error))
    for metric, estimate in records.meta.get("distribution", {}).items():
        rows.append(
            SummarisedMetric(metric, "", estimate["n"], estimate["value"], math.nan, estimate["low"], estimate["high"])
        )
    return rows


def show(records: Records, rows: list[SummarisedMetric]) -> None:
    """Print the table, and under it what is missing."""
    from rich.table import Table

    from evaluate.console import printer

    grouped = any(row.group for row in rows)
    table = Table(title=f"{records.meta['model']} on {records.meta['suite']}, {len(records.frame):,} images")
    for column in ("metric", *(["group"] if grouped else []), "mean", "standard error", "images"):
        table.add_column(column, justify="left" if column in ("metric", "group") else "right")
    for row in rows:
        spread = f"{row.error:.4f}" if math.isnan(row.low) else f"[{row.low:.4f}, {row.high:.4f}]"
        group = [row.group or "all"] if grouped else []
        table.add_row(row.metric, *group, f"{row.mean:.4f}", "-" if spread == "nan" else spread, f"{row.n:,}")
    console = printer()
    console.print(table)
    for metric, estimate in records.meta.get("distribution", {}).items():
        if estimate["note"]:
            console.print(f"{metric}: {estimate['note']}")
    failed = records.frame[records.frame["error"].notna()]
    if len(failed):
        first = failed.iloc[0]
        console.print(
            f"{len(failed):,} of {len(records.frame):,} images have errors, the first: {first['id']}: {first['error']}"
        )


def write(path: Path, records: Records, rows: list[SummarisedMetric]) -> None:
    """Write the rows as .csv."""
    named = {"suite": records.meta["suite"], "model": records.meta["model"]}
    write_as(path, {".csv": lambda path: write_csv([named | row._asdict() for row in rows], path)})

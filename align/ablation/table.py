"""A sweep's table, its answers and its image: in the terminal and as files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from align.ablation.claims import LEVEL, POWER, Finding, Interval, Results, cell_rows, findings
from align.ablation.config import CENTRE, Measure, SweepConfig
from align.ablation.measure import captions
from align.ablation.plot import curves_svg
from align.options import dump
from align.presets.load import name_of
from evaluate.console import printer
from evaluate.results.csv_io import write_csv
from prompts.io.files import replace
from prompts.io.markdown import table

#: Its file of runs, one in each row.
RUNS = "runs.csv"
ANSWERS = (
    "quantity", "read at", "n", "figure [95 % interval]", "on smooth curves", "p of all", "would have been found",
    "the claim",
)  # fmt: skip


def _run_row(config: SweepConfig, row: Mapping[str, Any]) -> dict[str, Any]:
    stop, metrics = row["stopped"] or {}, row["metrics"] or {}
    result = {
        "cell": row["cell"],
        "seed": row["seed"],
        "config": row["config"],
        "training_seconds": row["training_seconds"],
        "drawing_seconds": row["drawing_seconds"],
    }
    result |= {"stopped_at": stop.get("step"), "stopped_by": stop.get("by"), "why": stop.get("why")}
    for name in config.measure.metrics:
        metric = metrics.get(name, {})
        result |= {name: metric.get("value"), f"{name} n": metric.get("n")}
    return result


def result_of(config: SweepConfig, row: Mapping[str, str]) -> dict[str, Any]:
    """A run's `result.json`, from its row in `runs.csv`. Numbers are the same to the last digit."""

    def number(column: str) -> float | None:
        return float(row[column]) if row[column] else None

    values = {name: number(name) for name in config.measure.metrics}
    stop = {"step": int(row["stopped_at"]), "why": row["why"], "by": row["stopped_by"]} if row["stopped_at"] else None
    return {
        "stopped": stop,
        "metrics": None
        if None in values.values()
        else {name: {"value": value, "n": int(row[f"{name} n"])} for name, value in values.items()},
        "drawing_seconds": number("drawing_seconds"),
        "training_seconds": number("training_seconds"),
    }


def _answer_row(finding: Finding) -> dict[str, Any]:
    answer = finding.answer
    row = {"claim": answer.claim, "quantity": answer.quantity, "at": answer.at, **answer.interval._asdict()}
    row |= {"smooth": answer.smooth, "p": answer.p, "p corrected": finding.p_corrected}
    row |= {"detectable": finding.detectable}
    return row | {"verdict": finding.verdict}


def _table(config: SweepConfig, results: Results) -> tuple[list[str], list[list[str]]]:
    """The cells' table as text: header, rows."""
    rows = cell_rows(config, results)
    lines = []
    for cell in (CENTRE, *config.cells, *config.baselines):
        cell_metrics = [row for row in rows if row["cell"] == cell]
        line = [
            cell,
            f"{cell_metrics[0]['stopped']} of {cell_metrics[0]['runs']}" if cell not in config.baselines else "",
        ]
        for row in cell_metrics:
            interval, difference = (
                Interval(*(row[prefix + key] for key in ("mean", "low", "high", "n"))) for prefix in ("", "difference ")
            )
            line.append(str(interval) + (f"; {difference}" if cell != CENTRE else ""))
        lines.append(line)
    return ["cell", "stopped", *config.measure.metrics], lines


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else ""


def _answer_line(finding: Finding) -> list[str]:
    answer, numbers = finding.answer, (finding.answer.smooth, finding.p_corrected, finding.detectable)
    n = str(answer.interval.n or "")
    return [answer.quantity, answer.at, n, str(answer.interval), *map(_number, numbers), finding.verdict]


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[text.replace("|", "\\|") for text in cells] for cells in (header, *rows)]
    return table(escaped[0], escaped[1:])


def _measured_on(measure: Measure) -> str:
    listed = captions(measure)
    distinct = f", {len(set(listed)):,} of them distinct" if len(set(listed)) < len(listed) else ""
    return f"{len(listed) * measure.images:,} images of {len(listed):,} captions of {measure.prompts}{distinct}"


def write(config: SweepConfig, results: Results, preset: str, folder: Path) -> None:
    """Print the table and the answers, and write `runs.csv`, `cells.csv`, `claims.csv`, `README.md`, `curves.svg` and
    the sweep itself, `sweep.yaml`, into `folder`.

    preset: what `config` was made from, or the file in its place.
    """
    name = name_of(preset)
    answered, (header, rows) = findings(config, results), _table(config, results)
    known = sum(math.isfinite(finding.p_corrected) for finding in answered)
    wanted = sum(config.seeds_of.get(cell, config.seeds) for cell in (CENTRE, *config.cells))
    trained = sum(row["seed"] is not None for row in results)
    caption = (
        f"{trained} of {wanted} runs; mean over seeds [95 % interval]; difference from {CENTRE}, paired by seed [95 %"
        f" interval]. Per run {_measured_on(config.measure)}."
    )
    claims: dict[str, list[list[str]]] = {}
    for finding in answered:
        claims.setdefault(finding.answer.claim, []).append(_answer_line(finding))

    console = printer()
    for title, head, lines in [
        (name, header, rows),
        *((f"Claim: {claim}", ANSWERS, x) for claim, x in claims.items()),
    ]:
        table = Table(*head, title=title, caption=caption if title == name else None)
        for line in lines:
            table.add_row(*line)
        console.print(table)

    text = [f"# {name}", "", caption, "", *_markdown(header, rows), "", "![curves](curves.svg)", ""]
    for claim, lines in claims.items():
        text += [f"## Claim: {claim}", "", *_markdown(ANSWERS, lines), ""]
    text += [
        (
            f"Written by `align sweep {preset} --table DIR` from the runs in `runs.csv`. Intervals are over n seeds (of"
            " a share, runs), each of 95 % by itself. Curves are read straight from point to point; 'on smooth curves',"
            " with cubics in place of lines, says how much their bends may matter, which no interval counts. 'p of all'"
            f" is corrected for all {known} answers that have one (Holm), and a claim holds, or its opposite, where it"
            f" is below {LEVEL}. 'would have been found': roughly the smallest difference that had a chance of"
            f" {POWER:.0%} to be found among so many. A run that the guard stopped counts as what it had become, one"
            " that diverged has no figures. Baselines are not trained: an interval of a difference from one is for"
            " these very images of it, and what others might have said is not in it."
        ),
        "",
    ]
    replace(folder / "README.md", lambda draft: draft.write_text("\n".join(text), encoding="utf-8"))
    write_csv([_run_row(config, row) for row in results], folder / RUNS)
    write_csv(cell_rows(config, results), folder / "cells.csv")
    if answered:
        write_csv([_answer_row(finding) for finding in answered], folder / "claims.csv")
    replace(folder / "sweep.yaml", lambda draft: draft.write_text(dump(config), encoding="utf-8"))
    drawing = curves_svg(config, results)
    replace(folder / "curves.svg", lambda draft: draft.write_text(drawing, encoding="utf-8"))
    console.print(
        f"{folder}: README.md, sweep.yaml, runs.csv, cells.csv, curves.svg{', claims.csv' if answered else ''}"
    )

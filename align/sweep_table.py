"""What a sweep found: a table of its cells, curves of every metric over the reward, and an answer to each claim with its intervals.

Seeds are what is sampled: every interval is over seeds, and runs of one seed, which draw the same batches, are paired. Intervals are of
95 % each, not corrected for their number. A metric of a cell is the mean over the runs that left a checkpoint, those that the guard
stopped among them, for what they had become.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.markup import escape
from rich.table import Table
from scipy import stats

from align.config import CENTRE, SweepConfig
from evaluate.console import printer
from evaluate.files import replace
from evaluate.stats import paired_difference
from evaluate.tables import write_csv

GRID = np.linspace(0.1, 0.9, 17)  # places in the range of rewards that two curves share
SHOWN = (0.25, 0.5, 0.75)
HOLDS, OPPOSITE, INCONCLUSIVE = "holds", "the opposite holds", "inconclusive"

Results = Sequence[Mapping[str, Any]]


class Interval(NamedTuple):
    """A figure and its 95 % interval, NaN where there is none; of n seeds or runs."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        inside = f" [{self.low:.4g}, {self.high:.4g}]" if math.isfinite(self.low) and math.isfinite(self.high) else ""
        return f"{self.value:.4g}{inside}"

    def verdict(self, null: float = 0.0, *, sign: int = 1) -> str:
        """Whether the interval is above `null`, or with sign -1 below it."""
        if self.low > null or self.high < null:
            return HOLDS if (self.low > null) == (sign > 0) else OPPOSITE
        return INCONCLUSIVE


class Finding(NamedTuple):
    """One quantity that bears on a claim. at: where it was read."""

    claim: str
    quantity: str
    at: str
    interval: Interval
    verdict: str


def by_seed(results: Results, cell: str, metric: str, seeds: int) -> np.ndarray:
    """A metric of a cell's runs, `[seeds]`, NaN where there is none."""
    values = np.full(seeds, np.nan)
    for row in results:
        if row["cell"] == cell and row["metrics"]:
            values[row["seed"]] = row["metrics"][metric]["value"]
    return values


def mean_of(values: np.ndarray, minus: np.ndarray | None = None) -> Interval:
    """Mean over seeds, or of the differences paired by seed, with Student's t interval."""
    there = np.isfinite(values) & (True if minus is None else np.isfinite(minus))
    values, base = values[there], np.zeros(there.sum()) if minus is None else minus[there]
    n = len(values)
    if n < 2:
        return Interval(float((values - base)[0]) if n else math.nan, math.nan, math.nan, n)
    return Interval(*paired_difference(base, values)[:3], n)


# ---- at equal reward -------------------------------------------------------------------------------------------------------


def read_off(rewards: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values of the piecewise linear curve through points `[K]`, at rewards `[G]`; the end segments go on beyond their ends."""
    order = rewards.argsort(kind="stable")
    x, y = rewards[order], values[order]
    segment = np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2)
    width = x[segment + 1] - x[segment]
    share = np.divide(at - x[segment], width, out=np.full_like(at, 0.5), where=width > 0)
    result: np.ndarray = y[segment] + share * (y[segment + 1] - y[segment])
    return result


def at_equal_reward(
    better: tuple[np.ndarray, np.ndarray], than: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, list[Interval]] | None:
    """`better` - `than` at equal reward. Each is a curve: rewards and values, `[seeds, K]`.

    Returns rewards at SHOWN, and the differences there followed by their mean over GRID, of the curves through the means over seeds.
    The intervals leave out one seed at a time from both curves at once (jackknife, Student's t of one degree fewer than seeds):
    with five seeds, the percentiles of a bootstrap are too narrow. None where the curves share no rewards, or fewer than two seeds
    have all runs.
    """
    whole = np.isfinite(np.concatenate([*better, *than], 1)).all(1)
    curves = [part[whole] for part in (*better, *than)]
    n = int(whole.sum())
    if n < 2 or min(part.shape[1] for part in curves) < 2:
        return None
    x, _, u, _ = (part.mean(0) for part in curves)
    low, high = max(x.min(), u.min()), min(x.max(), u.max())
    if not low < high:
        return None
    places, shown = low + GRID * (high - low), low + np.array(SHOWN) * (high - low)

    def differences(left_out: list[int]) -> np.ndarray:
        x, y, u, v = (np.delete(part, left_out, 0).mean(0) for part in curves)
        gap = read_off(x, y, places) - read_off(u, v, places)
        return np.append(read_off(x, y, shown) - read_off(u, v, shown), gap.mean())

    found, without = differences([]), np.stack([differences([seed]) for seed in range(n)])
    half = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) * without.var(0))
    return shown, [Interval(float(a), float(a - b), float(a + b), n) for a, b in zip(found, half, strict=True)]


def _equal_reward(config: SweepConfig, results: Results) -> list[Finding]:
    claim = config.equal_reward
    if claim is None:
        return []
    reward, *others = config.measure.metrics
    title = f"at equal reward, {claim.better} is better than {claim.than}"

    def curve(name: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        each = [
            np.stack([by_seed(results, cell, m, config.seeds) for cell in config.curves[name]], 1) for m in (reward, metric)
        ]
        return each[0], each[1]

    findings = []
    for metric in others:
        sign = 1 if config.measure.metrics[metric] == "higher" else -1
        quantity = f"{metric} ({config.measure.metrics[metric]} is better), {claim.better} - {claim.than}"
        found = at_equal_reward(curve(claim.better, metric), curve(claim.than, metric))
        if found is None:
            none = Interval(math.nan, math.nan, math.nan, 0)
            findings.append(Finding(title, quantity, "the curves share no rewards, or runs are missing", none, INCONCLUSIVE))
            continue
        places = [f"{reward} = {place:.2f}" for place in found[0]] + [f"mean over the {reward} that both reach"]
        findings += [
            Finding(title, quantity, place, interval, interval.verdict(sign=sign))
            for place, interval in zip(places, found[1], strict=True)
        ]
    return findings


# ---- stability -------------------------------------------------------------------------------------------------------------


def spread_ratio(worse: Sequence[np.ndarray], than: Sequence[np.ndarray]) -> Interval:
    """Ratio of the standard deviations over seeds, pooled over cells, with the interval of the F distribution (for normal figures)."""

    def pooled(parts: Sequence[np.ndarray]) -> tuple[float, int]:
        kept = [part[np.isfinite(part)] for part in parts]
        freedom = sum(max(len(part) - 1, 0) for part in kept)
        scatter = sum(float(((part - part.mean()) ** 2).sum()) for part in kept if len(part))
        return (scatter / freedom if freedom else math.nan), freedom

    (a, p), (b, q) = pooled(worse), pooled(than)
    n = sum(int(np.isfinite(part).sum()) for part in (*worse, *than))
    if not p or not q or not b > 0:
        return Interval(math.nan, math.nan, math.nan, n)
    low, high = stats.f.ppf([0.025, 0.975], p, q)
    return Interval(math.sqrt(a / b), math.sqrt(a / b / high), math.sqrt(a / b / low), n)


def share_difference(a: int, n: int, b: int, m: int) -> Interval:
    """`a / n - b / m` with Newcombe's (1998, method 10) interval of the difference of two independent shares."""
    first, second = (stats.binomtest(k, of).proportion_ci(method="wilson") for k, of in ((a, n), (b, m)))
    p, q = a / n, b / m
    low = p - q - math.hypot(p - first.low, second.high - q)
    high = p - q + math.hypot(first.high - p, q - second.low)
    return Interval(p - q, low, high, n + m)


def stopped(results: Results, cells: Sequence[str]) -> tuple[int, int]:
    """How many runs of the cells ended before their last step, and how many there are."""
    rows = [row for row in results if row["cell"] in cells]
    return sum(row["stopped"] is not None for row in rows), len(rows)


def _less_stable(config: SweepConfig, results: Results) -> list[Finding]:
    claim = config.less_stable
    if claim is None:
        return []
    title = f"{', '.join(claim.worse)} vary more over seeds, and are stopped more often, than {', '.join(claim.than)}"
    findings = []
    for metric in config.measure.metrics:
        worse, than = ([by_seed(results, cell, metric, config.seeds) for cell in side] for side in (claim.worse, claim.than))
        ratio = spread_ratio(worse, than)
        findings.append(
            Finding(title, f"{metric}, ratio of standard deviations", "pooled over cells", ratio, ratio.verdict(1.0))
        )
    (a, n), (b, m) = stopped(results, claim.worse), stopped(results, claim.than)
    difference = share_difference(a, n, b, m) if n and m else Interval(math.nan, math.nan, math.nan, n + m)
    findings.append(
        Finding(title, "share of runs stopped, difference", f"{a} of {n} against {b} of {m}", difference, difference.verdict())
    )
    return findings


def findings(config: SweepConfig, results: Results) -> list[Finding]:
    """Every quantity that bears on the sweep's claims."""
    return _equal_reward(config, results) + _less_stable(config, results)


# ---- files and terminal ----------------------------------------------------------------------------------------------------


def cell_rows(config: SweepConfig, results: Results) -> list[dict[str, Any]]:
    """A row a cell and metric: mean over seeds, and difference from the centre paired by seed, each with its interval."""
    rows = []
    for cell in (CENTRE, *config.cells):
        halted, runs = stopped(results, [cell])
        for metric, direction in config.measure.metrics.items():
            values, base = (by_seed(results, name, metric, config.seeds) for name in (cell, CENTRE))
            mean, difference = mean_of(values), mean_of(values, base)
            rows.append(
                {"cell": cell, "metric": metric, "better": direction, "runs": runs, "stopped": halted}
                | dict(zip(("mean", "low", "high", "n"), mean, strict=True))
                | {f"difference {key}": x for key, x in zip(("mean", "low", "high", "n"), difference, strict=True)}
            )
    return rows


def _run_row(config: SweepConfig, row: Mapping[str, Any]) -> dict[str, Any]:
    halted, metrics = row["stopped"] or {}, row["metrics"] or {}
    result = {"cell": row["cell"], "seed": row["seed"], "cpu_seconds": round(row["cpu_seconds"], 1)}
    result |= {"stopped_at": halted.get("step"), "stopped_by": halted.get("by"), "why": halted.get("why")}
    for name in config.measure.metrics:
        found = metrics.get(name, {})
        result |= {name: found.get("value"), f"{name} n": found.get("n")}
    return result


def _table(config: SweepConfig, results: Results) -> tuple[list[str], list[list[str]]]:
    """The cells' table as text: header, rows."""
    rows = cell_rows(config, results)
    lines = []
    for cell in (CENTRE, *config.cells):
        own = [row for row in rows if row["cell"] == cell]
        line = [cell, f"{own[0]['stopped']} of {own[0]['runs']}"]
        for row in own:
            interval, difference = (
                Interval(*(row[prefix + key] for key in ("mean", "low", "high", "n"))) for prefix in ("", "difference ")
            )
            line.append(str(interval) + (f"; {difference}" if cell != CENTRE else ""))
        lines.append(line)
    return ["cell", "stopped", *config.measure.metrics], lines


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"

    return [line(header), "|" + "---|" * len(header), *map(line, rows)]


def write(config: SweepConfig, results: Results, name: str, folder: Path) -> None:
    """Print the table and the answers, and write `runs.csv`, `cells.csv`, `claims.csv`, `README.md` and `curves.svg` into `folder`."""
    found, (header, rows) = findings(config, results), _table(config, results)
    pictures = config.measure.captions * config.measure.pictures
    wanted = (len(config.cells) + 1) * config.seeds
    caption = (
        f"{len(results)} of {wanted} runs; mean over seeds [95 % interval]; difference from {CENTRE}, paired by seed [95 % interval]. "
        f"{pictures:,} pictures of {config.measure.captions:,} captions of {config.measure.prompts} a run."
    )
    answer_header = ["quantity", "read at", "figure [95 % interval]", "the claim"]
    claims: dict[str, list[list[str]]] = {}
    for finding in found:
        claims.setdefault(finding.claim, []).append([finding.quantity, finding.at, str(finding.interval), finding.verdict])

    console = printer()
    for title, head, lines in [(name, header, rows), *((f"Claim: {claim}", answer_header, x) for claim, x in claims.items())]:
        table = Table(*map(escape, head), title=escape(title), caption=caption if title == name else None)
        for line in lines:
            table.add_row(*map(escape, line))
        console.print(table)

    text = [f"# {name}", "", caption, "", *_markdown(header, rows), "", "![curves](curves.svg)", ""]
    for claim, lines in claims.items():
        text += [f"## Claim: {claim}", "", *_markdown(answer_header, lines), ""]
    text += [
        f"Written by `align sweep {name} --table DIR` from `runs.csv`'s runs. Intervals are over seeds and not corrected for their number; "
        "a run that the guard stopped counts as what it had become, one that diverged has no figures.", "",
    ]  # fmt: skip
    replace(folder / "README.md", lambda draft: draft.write_text("\n".join(text), encoding="utf-8"))
    write_csv([_run_row(config, row) for row in results], folder / "runs.csv")
    write_csv(cell_rows(config, results), folder / "cells.csv")
    if found:
        write_csv(
            [
                {"claim": f.claim, "quantity": f.quantity, "at": f.at, **f.interval._asdict(), "verdict": f.verdict}
                for f in found
            ],
            folder / "claims.csv",
        )
    drawing = curves_svg(config, results)
    replace(folder / "curves.svg", lambda draft: draft.write_text(drawing, encoding="utf-8"))
    console.print(f"{folder}: README.md, runs.csv, cells.csv, curves.svg{', claims.csv' if found else ''}")


def _look_at(axes: Any, places: Mapping[str, tuple[float, float]], cells: set[str]) -> list[str]:
    """Limit a picture to the curves' cells and half as much around them; returns the cells that are outside."""
    x, y = (np.array([places[cell][side] for cell in cells]) for side in (0, 1))
    if not (np.isfinite(x).any() and np.isfinite(y).any()):
        return []
    limits = []
    for values, limit in ((x, axes.set_xlim), (y, axes.set_ylim)):
        low, high = np.nanmin(values), np.nanmax(values)
        room = max((high - low) / 2, 1e-9)
        limits.append(limit(low - room, high + room))
    (left, right), (bottom, top) = limits
    finite = {cell: place for cell, place in places.items() if all(map(math.isfinite, place))}
    return [cell for cell, (a, b) in finite.items() if not (left <= a <= right and bottom <= b <= top)]


INK = "#010203"  # stands for whatever the page's text has
COLOURS = ("#2f81d6", "#e0701a", "#2c9c69", "#b05cc6")  # 3 to 1 or more on white and on black
STYLE = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"


def curves_svg(config: SweepConfig, results: Results) -> str:
    """Every metric over the reward: the curves, and all other cells as grey points, with intervals over seeds. In light and dark."""
    import matplotlib
    from matplotlib.figure import Figure

    reward, *others = config.measure.metrics
    seeds = config.seeds
    look: Any = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with matplotlib.rc_context({**look, "svg.fonttype": "none", "svg.hashsalt": "sweep", "font.size": 9}):
        columns = 2 if len(others) > 1 else 1
        figure = Figure(figsize=(5.2 * columns, 4 * math.ceil(len(others) / columns)), layout="constrained")
        drawn = {cell for curve in config.curves.values() for cell in curve}
        groups = [(name, curve, colour) for (name, curve), colour in zip(config.curves.items(), COLOURS, strict=False)]
        groups += [("", (cell,), "#808080") for cell in (CENTRE, *config.cells) if cell not in drawn]
        for number, metric in enumerate(others, 1):
            axes = figure.add_subplot(math.ceil(len(others) / columns), columns, number)
            places: dict[str, tuple[float, float]] = {}
            for name, cells, colour in groups:
                points = [[mean_of(by_seed(results, cell, m, seeds)) for m in (reward, metric)] for cell in cells]
                x, y = ([point[side].value for point in points] for side in (0, 1))
                errors = [
                    [[np.nan_to_num(p[s].value - p[s].low), np.nan_to_num(p[s].high - p[s].value)] for p in points]
                    for s in (0, 1)
                ]
                axes.errorbar(
                    x, y, xerr=np.transpose(errors[0]), yerr=np.transpose(errors[1]), color=colour, marker="o", markersize=4,
                    linewidth=1.6 if name else 0, elinewidth=0.8, label=name or None,
                )  # fmt: skip
                for cell, a, b in zip(cells, x, y, strict=True):
                    places[cell] = (a, b)
                    if math.isfinite(a) and math.isfinite(b):
                        axes.annotate(cell, (a, b), (4, 4), textcoords="offset points", fontsize=7, color=colour)
            axes.set_xlabel(f"{reward} (the reward)")
            axes.set_ylabel(f"{metric} ({config.measure.metrics[metric]} is better)")
            axes.patch.set_alpha(0)
            if outside := _look_at(axes, places, drawn):
                axes.set_title(f"outside the picture: {', '.join(outside)}", fontsize=7)
        if config.curves:
            figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
        figure.patch.set_alpha(0)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None, "Title": f"Every metric over {reward}"})
    return target.getvalue().replace(INK, "currentColor").replace("<defs>", f"{STYLE}<defs>", 1)

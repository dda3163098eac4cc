"""Every metric of a sweep over its reward, as a plot for light and dark pages."""

import io
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from align.ablation.claims import Interval, Results, by_seed, mean_of
from align.ablation.config import CENTRE, SweepConfig

#: From which ratio of the largest to the smallest a metric is drawn by its logarithm, all being positive.
WIDE = 8
#: Up to so many curves their cells are named; more names would be nothing but ink.
NAMED = 3
#: Of a cell's name, in points: a letter's height, and its width.
SIZE, WIDTH = 7, 3.9


def _with_room(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanmin(values), np.nanmax(values)
    room = max((high - low) / 3, 1e-9)
    return low - room, high + room


def _look_at(axes: Any, places: Mapping[str, tuple[float, float]], cells: set[str]) -> list[str]:
    """Limit a plot to the curves' cells and a third as much around them; returns the cells that are outside."""
    x, y = (np.array([places[cell][side] for cell in cells]) for side in (0, 1))
    if not (np.isfinite(x).any() and np.isfinite(y).any()):
        return []
    from matplotlib.ticker import LogLocator

    wide = np.nanmin(y) > 0 and np.nanmax(y) > WIDE * np.nanmin(y)
    if wide:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    left, right = axes.set_xlim(*_with_room(x))
    bottom, top = axes.set_ylim(*(np.exp(_with_room(np.log(y))) if wide else _with_room(y)))
    finite = {cell: place for cell, place in places.items() if all(map(math.isfinite, place))}
    return [cell for cell, (a, b) in finite.items() if not (left <= a <= right and bottom <= b <= top)]


def _name(axes: Any, places: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Names beside the points that are seen, moved up where they would lie over one another. Limits have to be set."""
    seen = {}
    for cell in colours:
        x, y = places[cell]
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        if left <= x <= right and bottom <= y <= top:
            seen[cell] = axes.transData.transform((x, y)) * 72 / axes.figure.dpi
    taken: list[tuple[float, float, float]] = []  # from, to, height, in points
    for cell, (x, y) in sorted(seen.items(), key=lambda item: item[1][1]):
        width, edge = WIDTH * len(cell), axes.bbox.x1 * 72 / axes.figure.dpi
        start, height = x + 4 if x + 4 + width < edge else x - 4 - width, y + 3
        end = start + width
        for other, until, at in sorted(taken, key=lambda name: name[2]):
            if start < until and other < end and abs(height - at) < SIZE:
                height = at + SIZE
        taken.append((start, end, height))
        axes.annotate(
            cell, places[cell], (start - x, height - y), textcoords="offset points", fontsize=SIZE, color=colours[cell]
        )


def _curve(axes: Any, points: Sequence[Sequence[Interval]], name: str, colour: str) -> list[tuple[float, float]]:
    """Points with their intervals, joined where they have a name together; returns where they are."""
    x, y = ([point[side].value for point in points] for side in (0, 1))
    errors = [
        [[np.nan_to_num(p[side].value - p[side].low), np.nan_to_num(p[side].high - p[side].value)] for p in points]
        for side in (0, 1)
    ]
    look = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 1.6 if name else 0, "elinewidth": 0.8}
    axes.errorbar(x, y, xerr=np.transpose(errors[0]), yerr=np.transpose(errors[1]), label=name or None, **look)
    return list(zip(x, y, strict=True))


INK = "#010203"  # stands for whatever the page's text has
COLOURS = ("#2f81d6", "#e0701a", "#2c9c69", "#b05cc6", "#d1495b", "#1b98a6")  # 3 to 1 or more on white and on black
STYLE = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"


def curves_svg(config: SweepConfig, results: Results) -> str:
    """Every metric over the reward: the curves, and all other cells as grey points, with intervals over seeds.

    In light and dark.
    """
    import matplotlib
    from matplotlib.figure import Figure

    reward, *others = config.measure.metrics
    look: Any = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with matplotlib.rc_context({**look, "svg.fonttype": "none", "svg.hashsalt": "sweep", "font.size": 9}):
        columns = 2 if len(others) > 1 else 1
        figure = Figure(figsize=(5.2 * columns, 4 * math.ceil(len(others) / columns)), layout="constrained")
        drawn = {cell for curve in config.curves.values() for cell in curve}
        groups = [
            (name, curve, colour) for (name, curve), colour in zip(config.curves.items(), cycle(COLOURS), strict=False)
        ]
        groups += [("", (cell,), "#808080") for cell in (CENTRE, *config.cells, *config.baselines) if cell not in drawn]
        plots = []
        for number, metric in enumerate(others, 1):
            axes = figure.add_subplot(math.ceil(len(others) / columns), columns, number)
            places: dict[str, tuple[float, float]] = {}
            named: dict[str, str] = {}
            for name, cells, colour in groups:
                points = [
                    [mean_of(by_seed(results, cell, m, config.seeds)) for m in (reward, metric)] for cell in cells
                ]
                places |= dict(zip(cells, _curve(axes, points, name, colour), strict=True))
                named |= dict.fromkeys(cells if not name or len(config.curves) <= NAMED else (), colour)
            axes.set_xlabel(f"{reward} (the reward)")
            axes.set_ylabel(f"{metric} ({config.measure.metrics[metric]} is better)")
            axes.patch.set_alpha(0)
            if outside := _look_at(axes, places, drawn):
                axes.set_title(f"outside the plot: {', '.join(outside)}", fontsize=SIZE)
            plots.append((axes, places, named))
        if config.curves:
            figure.legend(
                *figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False
            )
        figure.draw_without_rendering()  # so that every plot has its place
        figure.set_layout_engine("none")
        for plot in plots:
            _name(*plot)
        figure.patch.set_alpha(0)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None, "Title": f"Every metric over {reward}"})
    return target.getvalue().replace(INK, "currentColor").replace("<defs>", f"{STYLE}<defs>", 1)

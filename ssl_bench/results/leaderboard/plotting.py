"""What the figures share: colours, points with intervals, curves with bands, fronts and groups.

Colours are those of Okabe and Ito (Color Universal Design, 2008), which colour-blind readers tell apart, with grey
instead of yellow, which paper swallows; line styles and markers say the same in grey.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ssl_bench.results.leaderboard.aggregate import Aggregate
from ssl_bench.results.leaderboard.table import Table
from ssl_bench.results.text import plain

Drawn = Figure | str  # a figure, or why there is none
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
DASHES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "ssl-bench",  # element names; without it they are random
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, score) that no cheaper or equally cheap point reaches, by rising cost.

    Example:
        >>> pareto([(3, 5.0), (1, 4.0), (2, 3.0), (1, 2.0)])
        [(1, 4.0), (3, 5.0)]
    """
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


def cliques(order: Sequence[int], same: Sequence[Sequence[bool]]) -> list[tuple[int, int]]:
    """The longest runs of neighbours, two or more, among whom no pair differs: (first, last) places.

    Example:
        >>> cliques([7, 8, 9], [[True, True, False], [True, True, True], [False, True, True]])
        [(0, 1), (1, 2)]
    """
    found: list[tuple[int, int]] = []
    for first in range(len(order)):
        last = first
        while last + 1 < len(order) and all(same[i][last + 1] for i in range(first, last + 1)):
            last += 1
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def new_axes(height: float = 3.4) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.6, height), layout="constrained")
    return figure, figure.subplots()


def mark(axes: Any, table: Table, index: int, x: Any, y: Any, **errors: Any) -> None:
    """A point with its interval, in the colour and marker of an aggregate; hollow when labels went into it."""
    aggregate = table.aggregates[index]
    style = look(index) | {"linestyle": "none", "markersize": 6, "capsize": 2.5, "elinewidth": 1}
    hollow = {"markerfacecolor": "white"} if aggregate.labels else {}
    axes.errorbar(x, y, **errors, **style, **hollow, label=short_label(aggregate))


def draw_curves(table: Table, curves: dict[int, list[tuple[float, float, float]]]) -> tuple[Figure, Any]:
    """One curve with a band of its 95 % interval for each aggregate, by its index in the table."""
    figure, axes = new_axes()
    for index, curve in curves.items():
        x, mean, half = np.array(sorted(curve)).T
        style = look(index)
        axes.plot(x, mean, **style, markersize=4, label=short_label(table.aggregates[index]))
        axes.fill_between(x, mean - half, mean + half, color=style["color"], alpha=0.12, linewidth=0)
    return figure, axes


def interval(aggregate: Aggregate, evaluation: str, metric: str) -> tuple[float, float]:
    """Mean and half-width; NaN without a row."""
    cell = aggregate.cell(evaluation, metric)
    return (cell.mean, cell.half) if cell else (math.nan, math.nan)


def add_legend(figure: Figure, axes: Any, title: str) -> Figure:
    """Every label once, outside on the right; the figure grows until they fit."""
    figure.suptitle(drawable(title), fontsize=8, x=0.01, ha="left")
    handles, labels = axes.get_legend_handles_labels()
    figure.set_figheight(max(figure.get_figheight(), 0.4 + 0.18 * len(labels)))
    figure.legend(handles, labels, loc="outside right upper")
    return figure


def axis_label(table: Table, evaluation: str) -> str:
    row = next(each.by_evaluation[evaluation][0] for each in table.aggregates if evaluation in each.cells)
    return drawable(f"{evaluation} {row['headline']}" + ("" if row["headline"] == "rankme" else ", %"))


def look(index: int) -> dict[str, Any]:
    """Colour, marker and line style of an aggregate: two of the three tell any 32 apart."""
    dash = DASHES[(index + index // len(COLOURS)) % len(DASHES)]
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "linestyle": dash}


def short_label(aggregate: Aggregate) -> str:
    """An aggregate's name in a legend."""
    return drawable(aggregate.label, 28) + aggregate.footnotes


def drawable(text: str, longest: int = 80) -> str:
    """Text that matplotlib doesn't read as mathematics, cut where it would fill the picture."""
    short = plain(text)
    return (short if len(short) <= longest else short[: longest - 1] + "…").replace("$", r"\$")


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]

"""What the figures share: points with intervals, curves with bands, fronts and groups."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ssl_bench.results.leaderboard.aggregate import Aggregate
from ssl_bench.results.leaderboard.looks import colour_and_marker, place_of, variants
from ssl_bench.results.leaderboard.table import Table, metric_text
from ssl_bench.results.text import plain

Drawn = Figure | str  # a figure, or why there is none
FILLS = ("full", "left", "top", "right", "bottom")  # of the markers of several aggregates of one method
LETTER = 0.065  # inches, about, of a title's
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


def mark(axes: Any, table: Table, index: int, x: Any, y: Any, name: str | None = None, **errors: Any) -> None:
    """Points with their intervals, in the colour and marker of an aggregate; hollow when labels went into it."""
    aggregate = table.aggregates[index]
    style = look(table, index) | {"linestyle": "none", "markersize": 6, "capsize": 2.5, "elinewidth": 1}
    hollow = {"markerfacecolor": "white"} if aggregate.labels else {}
    axes.errorbar(x, y, **errors, **style, **hollow, label=short_label(aggregate, name))


def draw_curves(table: Table, curves: dict[int, list[tuple[float, float, float]]]) -> tuple[Figure, Any]:
    """One curve with a band of its 95 % interval for each aggregate, by its index in the table."""
    figure, axes = new_axes()
    for index, curve in curves.items():
        x, mean, half = np.array(sorted(curve)).T
        style = look(table, index)
        axes.plot(x, mean, **style, markersize=4, label=short_label(table.aggregates[index]))
        axes.fill_between(x, mean - half, mean + half, color=style["color"], alpha=0.12, linewidth=0)
    return figure, axes


def interval(aggregate: Aggregate, evaluation: str, metric: str) -> tuple[float, float]:
    """Mean and half-width; NaN without a row."""
    cell = aggregate.cell(evaluation, metric)
    return (cell.mean, cell.half) if cell else (math.nan, math.nan)


def add_legend(figure: Figure, axes: Any, title: str) -> Figure:
    """Every label once, outside on the right; the figure grows until they fit."""
    handles, labels = axes.get_legend_handles_labels()
    lines = sum(1 + label.count("\n") for label in labels)
    figure.set_figheight(max(figure.get_figheight(), 0.4 + 0.18 * lines))
    figure.legend(handles, labels, loc="outside right upper")
    figure.draw_without_rendering()  # the axes get their width, and the title lines that end where they do
    letters = int(axes.get_window_extent().width / figure.dpi / LETTER)
    axes.set_title("\n".join(textwrap.wrap(drawable(title, 160), letters)), fontsize=8, loc="left")
    return figure


def axis_label(table: Table, evaluation: str) -> str:
    """The evaluation, its metric with its unit, and what a point and its bar are."""
    rows = [each.by_evaluation[evaluation] for each in table.aggregates if evaluation in each.cells]
    few, many = min(map(len, rows)), max(map(len, rows))
    seeds = f"{many} seed{'s' * (many > 1)}" if few == many else f"{few} to {many} seeds"
    return drawable(f"{evaluation} {metric_text(rows[0][0])}") + f"\nmean over {seeds} ± 95 % interval"


def look(table: Table, index: int) -> dict[str, Any]:
    """Colour and marker of a method, and what tells several aggregates of one apart: line style and filling."""
    colour, marker = colour_and_marker(place_of(table.aggregates[index].method))
    variant = variants(table.aggregates)[index]
    return {"color": colour, "marker": marker} | variant_look(variant)


def variant_look(variant: int) -> dict[str, Any]:
    """Line style and filling of the markers."""
    return {"linestyle": DASHES[variant % len(DASHES)], "fillstyle": FILLS[variant % len(FILLS)]}


def short_label(aggregate: Aggregate, name: str | None = None) -> str:
    """An aggregate's name in a legend, in lines of 30 characters."""
    return "\n".join(textwrap.wrap(drawable(name or aggregate.label, 88) + aggregate.footnotes, 30))


def drawable(text: str, longest: int = 80) -> str:
    """Text that matplotlib doesn't read as mathematics, cut where it would fill the picture."""
    short = plain(text)
    return (short if len(short) <= longest else short[: longest - 1] + "…").replace("$", r"\$")


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]


def main_evaluation(table: Table) -> str:
    """The evaluation that figures of one alone show."""
    return next((name for name in ("linear", "knn") if name in table.evaluations), table.evaluations[0])

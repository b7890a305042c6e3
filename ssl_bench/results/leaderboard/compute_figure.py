"""Accuracy over compute: the budgets of each method, what needs no training, and the Pareto front."""

from __future__ import annotations

from typing import Any

from ssl_bench.results.frame import spent_on
from ssl_bench.results.leaderboard.aggregate import Aggregate, differing_settings, labels
from ssl_bench.results.leaderboard.differences import NEVER_TRAINED
from ssl_bench.results.leaderboard.plotting import (
    Drawn,
    add_legend,
    axis_label,
    look,
    main_evaluation,
    mark,
    new_axes,
    pareto,
)
from ssl_bench.results.leaderboard.table import Table
from ssl_bench.results.leaderboard.ticks import log_ticks

SAME = 1.05  # times the FLOPs, at most, of runs that are meant to have the same


def compute(table: Table) -> Drawn:
    """Accuracy against FLOPs of pre-training, with the Pareto front of the methods without labels.

    A line joins the budgets of one method on one backbone.
    """
    evaluation = main_evaluation(table)
    points = [
        (index, flops, each.cells[evaluation])
        for index, each in enumerate(table.aggregates)
        if evaluation in each.cells and (flops := spent_on(each.first, "flops"))
    ]
    if not points:
        return "no row says what its pre-training cost"
    competing = [flops for index, flops, _ in points if table.aggregates[index].competes]
    if len(competing) > 1 and max(competing) < SAME * min(competing):
        return "all methods had the same FLOPs"
    figure, axes = new_axes()
    groups: list[list[tuple[float, float, float, int]]] = []  # of one method on one backbone, other budgets
    for index, flops, cell in points:
        each = table.aggregates[index]
        for group in groups:
            if _other_budget(table.aggregates[group[0][3]], each):
                break
        else:
            groups.append(group := [])
        group.append((flops, cell.mean, cell.half, index))
    names = labels([table.aggregates[group[0][3]] for group in groups])
    for name, group in zip(names, groups, strict=True):
        first = group[0][3]
        x, y, half, _ = zip(*sorted(group), strict=True)
        mark(axes, table, first, x, y, name, yerr=half)
        axes.plot(x, y, color=look(table, first)["color"], linewidth=1, alpha=0.6, zorder=0)
    front = compute_front(table, evaluation)
    if front:
        cheapest, dearest = min(flops for _, flops, _ in points), max(flops for _, flops, _ in points)
        reach = [(flops or cheapest / 1.5, mean) for flops, mean in front] + [(dearest * 1.05, front[-1][1])]
        axes.step(
            *zip(*reach, strict=True),
            where="post",
            color="0.45",
            linewidth=1,
            zorder=0,
            label="Pareto front, no labels,\nfrom the free baselines",
        )
    _mark_free(axes, table, evaluation)
    axes.set(xscale="log", xlabel="FLOPs of pre-training, teachers included", ylabel=axis_label(table, evaluation))
    axes.set_xticks(*zip(*log_ticks(*axes.get_xlim()), strict=True))
    axes.minorticks_off()
    return add_legend(figure, axes, table.title)


def _other_budget(one: Aggregate, other: Aggregate) -> bool:
    """Whether two recipes differ in their length alone."""
    return (one.method, one.backbone) == (other.method, other.backbone) and not differing_settings(one, other)


def _mark_free(axes: Any, table: Table, evaluation: str) -> None:
    """What costs no training: a line, or a band from the lowest to the highest of several untrained networks."""
    for method, style in (("untrained", "--"), ("raw_pixels", ":")):
        shown = [each for each in table.aggregates if each.method == method and evaluation in each.cells]
        means = [each.cells[evaluation].mean for each in shown]
        if len(means) > 1:
            label = f"{method} (free),\nlowest to highest of {len(means)}"
            axes.axhspan(min(means), max(means), color="0.9", zorder=-1, label=label)
        elif means:
            axes.axhline(means[0], color="0.3", linestyle=style, linewidth=1, label=f"{method} (free)")


def compute_front(table: Table, evaluation: str) -> list[tuple[float, float]]:
    """The (FLOPs, mean) that no cheaper aggregate without labels reaches; what needs no training costs 0."""
    shown = [each for each in table.aggregates if evaluation in each.cells and each.competes]
    spent = [0.0 if each.method in NEVER_TRAINED else spent_on(each.first, "flops") for each in shown]
    costs = [
        (flops, each.cells[evaluation].mean) for each, flops in zip(shown, spent, strict=True) if flops is not None
    ]
    return pareto(costs) if any(flops for flops, _ in costs) else []

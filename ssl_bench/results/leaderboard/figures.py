"""Figures of a leaderboard, from rows and logs alone; the same rows give the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from ssl_bench.results.leaderboard.compute_figure import compute
from ssl_bench.results.leaderboard.curves import training_curves
from ssl_bench.results.leaderboard.plotting import (
    STYLE,
    Drawn,
    add_legend,
    axis_label,
    cliques,
    draw_curves,
    drawable,
    interval,
    main_evaluation,
    mark,
    new_axes,
    short_label,
    slug,
)
from ssl_bench.results.leaderboard.significance import ALPHA
from ssl_bench.results.leaderboard.table import Table
from ssl_bench.utils.files import write_atomic


def draw(
    tables: Sequence[Table], folder: Path, runs: str | Path | None = None, show: Callable[[str], None] = print
) -> list[Path]:
    """Write every figure that has its data as .svg and .png, and name the others.

    Args:
        tables: Of ``build``; with several, the file names carry the data and the backbone.
        folder: Where to write.
        runs: Folder of runs with ``metrics.csv``, for the training curves.
        show: What to do with the lines about figures left out.
    """
    files = []
    with matplotlib.rc_context(STYLE):
        for number, table in enumerate(tables, start=1):
            suffix = f"-{number}-{slug(table.title)}" if len(tables) > 1 else ""
            for name, figure in FIGURES.items():
                files += _save(figure(table), folder, name + suffix, show)
        files += _save(training_curves(tables, runs), folder, "training", show)
    return files


def _save(drawn: Drawn, folder: Path, name: str, show: Callable[[str], None]) -> list[Path]:
    if isinstance(drawn, str):
        show(f"no figure {name}: {drawn}")
        return []
    files = []
    for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        drawn.savefig(buffer, format=kind, dpi=200, metadata=metadata, bbox_inches="tight")
        files.append(write_atomic(folder / f"{name}.{kind}", buffer.getvalue()))
    return files


# The figures ----------------------------------------------------------------------------------------------------------


def ranks(table: Table) -> Drawn:
    """The main evaluation's means with 95 % intervals; bars on the right join methods that don't differ."""
    evaluation = main_evaluation(table)
    standing = table.standings.get(evaluation)
    order = [i for i, each in enumerate(table.aggregates) if evaluation in each.cells and not each.collapsed]
    order.sort(key=lambda i: -table.aggregates[i].cells[evaluation].mean)
    if standing is None or len(order) < 2:
        return "fewer than two methods to rank"
    figure, axes = new_axes(height=0.9 + 0.3 * len(order))
    for place, index in enumerate(order):
        cell = table.aggregates[index].cells[evaluation]
        mark(axes, table, index, cell.mean, place, xerr=cell.half)
        for row in table.aggregates[index].by_evaluation[evaluation]:
            value = row["metrics"][row["headline"]]["value"]
            axes.plot(value, place, marker="|", color="0.35", markersize=8, linestyle="none", zorder=1)
    bars = cliques(order, [[standing.p[i, j] >= ALPHA for j in order] for i in order])
    for at, (first, last) in enumerate(bars):
        x = 1.03 + 0.025 * at
        axes.plot(
            [x, x], [first - 0.2, last + 0.2], color="0.2", transform=axes.get_yaxis_transform(), clip_on=False, lw=2
        )
    names = [f"{standing.ranks[i]}  {short_label(table.aggregates[i])}" for i in order]
    axes.set_yticks(range(len(order)), names)
    axes.set(xlabel=axis_label(table, evaluation), ylim=(len(order) - 0.4, -0.6))
    how = "rank, method; ticks: seeds; bars on the right: no significant difference (Holm)"
    figure.suptitle(f"{drawable(table.title, 160)}\n{how}", fontsize=8, x=0.01, ha="left")
    return figure


def neighbours(table: Table) -> Drawn:
    """k-NN accuracy over k at the headline's temperature."""
    curves: dict[int, list[tuple[float, float, float]]] = {}
    for index, each in enumerate(table.aggregates):
        rows = each.by_evaluation.get("knn", [])
        for metric in rows[0]["metrics"] if rows else ():
            match = re.fullmatch(r"top1@k=(\d+),T=([\d.]+)", metric)
            if match and float(match[2]) == rows[0]["evaluation"]["chosen"]["headline_temperature"]:
                curves.setdefault(index, []).append((float(match[1]), *interval(each, "knn", metric)))
    if not any(len(curve) > 1 for curve in curves.values()):
        return "no k-NN row has several k"
    figure, axes = draw_curves(table, curves)
    axes.set(xscale="log", xlabel="neighbours k", ylabel="k-NN accuracy, %")
    ticks = sorted({k for curve in curves.values() for k, _, _ in curve})
    axes.set_xticks(ticks, [f"{k:g}" for k in ticks], minor=False)
    axes.minorticks_off()
    return add_legend(figure, axes, table.title)


def agreement(table: Table) -> Drawn:
    """Linear probe against k-NN."""
    figure = _scatter(table, ("knn",), ("linear", "logistic"), "k-NN and linear")
    if not isinstance(figure, str):
        (axes,) = figure.axes
        ends = [min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])]
        axes.plot(ends, ends, color="0.6", linewidth=0.8, zorder=0)
        axes.plot([], [], color="0.6", linewidth=0.8, label="equal")
        figure.legends[0].remove()
        add_legend(figure, axes, table.title)
    return figure


def finetuning(table: Table) -> Drawn:
    """Fine-tuning against the linear probe: which methods are better than their frozen features say."""
    return _scatter(table, ("linear", "probe", "logistic"), ("finetune",), "linear and fine-tuning")


def _scatter(table: Table, across: Sequence[str], up: Sequence[str], what: str) -> Drawn:
    """One evaluation against another: of those that an evaluator of each kind made, the two that most methods have."""
    pairs = [(x, y) for x in _made_by(table, across) for y in _made_by(table, up)]
    both = {pair: [i for i, each in enumerate(table.aggregates) if set(pair) <= set(each.cells)] for pair in pairs}
    best = max(pairs, key=lambda pair: len(both[pair]), default=None)
    if best is None or len(both[best]) < 2:
        return f"fewer than two methods with both {what} rows"
    figure, axes = new_axes()
    for index in both[best]:
        x, y = (table.aggregates[index].cells[name] for name in best)
        mark(axes, table, index, x.mean, y.mean, xerr=x.half, yerr=y.half)
    axes.set(xlabel=axis_label(table, best[0]), ylabel=axis_label(table, best[1]))
    return add_legend(figure, axes, table.title)


def label_efficiency(table: Table) -> Drawn:
    """Accuracy against the share of labelled images, under the protocol with the most shares."""
    shares = {name: _shares(table, name) for name in _made_by(table, ("lowshot",))}
    best = max(shares, key=lambda name: len(shares[name]), default="")
    if not best or len(shares[best]) < 2:
        return "no row with several shares of labels (label-efficiency, lowshot)"
    curves = {
        index: [(share, *interval(each, best, f"top1@{share:g}%")) for share in shares[best]]
        for index, each in enumerate(table.aggregates)
        if best in each.cells
    }
    figure, axes = draw_curves(table, curves)
    axes.set(xscale="log", xlabel="training images with a label, %", ylabel=f"{drawable(best)} accuracy, %")
    axes.set_xticks(shares[best], [f"{share:g}" for share in shares[best]])
    axes.minorticks_off()
    return add_legend(figure, axes, table.title)


def _shares(table: Table, evaluation: str) -> list[float]:
    """Percent of labelled images that a low-shot evaluation reports."""
    rows = [row for each in table.aggregates for row in each.by_evaluation.get(evaluation, [])]
    found = (re.fullmatch(r"top1@([\d.]+)%", metric) for row in rows for metric in row["metrics"])
    return sorted({float(match[1]) for match in found if match})


def factors(table: Table) -> Drawn:
    """What a linear map reads off the features: R² or accuracy for each factor."""
    shown = [i for i, each in enumerate(table.aggregates) if "factors" in each.cells]
    names = list(
        dict.fromkeys(
            metric
            for i in shown
            for metric in table.aggregates[i].by_evaluation["factors"][0]["metrics"]
            if "/" in metric
        )
    )
    if not names:
        return "no row of factors"
    figure, axes = new_axes(height=1.2 + max(0.34, 0.06 * len(shown)) * len(names))
    for index in shown:
        aggregate = table.aggregates[index]
        step = 0.7 * (shown.index(index) / max(len(shown) - 1, 1) - 0.5)
        at = [
            (place, *interval(aggregate, "factors", name))
            for place, name in enumerate(names)
            if aggregate.cell("factors", name)
        ]
        place, mean, half = np.array(at).T
        mark(axes, table, index, mean, place + step, xerr=half)
    axes.set_yticks(
        range(len(names)), [drawable(name.replace("/r2", ", R²").replace("/top1", ", accuracy")) for name in names]
    )
    axes.set(xlabel="R² or accuracy, %", ylim=(len(names) - 0.5, -0.5))
    return add_legend(figure, axes, table.title)


FIGURES: dict[str, Callable[[Table], Drawn]] = {
    "compute": compute,
    "ranks": ranks,
    "knn-over-k": neighbours,
    "agreement": agreement,
    "linear-finetune": finetuning,
    "label-efficiency": label_efficiency,
    "factors": factors,
}


def _made_by(table: Table, evaluators: Sequence[str]) -> list[str]:
    """The evaluations of a table that one of these evaluators made, in the order of the evaluators."""
    made = {row["evaluation"]["name"]: row["evaluation"]["evaluator"] for each in table.aggregates for row in each.rows}
    return [name for kind in evaluators for name in table.evaluations if made[name] == kind]

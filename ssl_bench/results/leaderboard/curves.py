"""Training curves from the logs of runs."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ssl_bench.results.leaderboard.looks import colour_and_marker, place_of
from ssl_bench.results.leaderboard.plotting import Drawn, add_legend, drawable
from ssl_bench.results.text import plain
from ssl_bench.training.loggers import METRICS
from ssl_bench.utils.errors import UserError

LABELS = {"loss": "loss, from its highest (1) to its lowest (0)", "knn": "online k-NN on held-out images, %"}


def training_curves(runs: str | Path | None) -> Drawn:
    """Loss and online k-NN of each run over the training.

    Raises:
        UserError: No such folder.
    """
    if runs is None:
        return "no folder of runs given"
    logs = read_logs(runs)
    if not logs:
        return f"no {METRICS} with points in {plain(str(runs))}/*"
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    panels = figure.subplots(1, 2)
    named: set[str] = set()
    for name, points in logs.items():
        kind = method_of(name)
        colour, marker = colour_and_marker(place_of(kind))
        for axes, key in zip(panels, ("loss", "knn"), strict=True):
            if curve := curve_of(points, key):
                x, y = zip(*curve, strict=True)
                label = None if kind in named else drawable(kind, 28)
                style: dict[str, Any] = {"color": colour, "marker": marker, "markevery": max(1, len(curve) // 6)}
                axes.plot(x, y, **style, markersize=4, label=label)
                named.add(kind)
    for axes, key in zip(panels, LABELS, strict=True):
        axes.set(xlabel="training, %", ylabel=LABELS[key])
    return add_legend(figure, panels[0], "a curve a run; losses of different methods have no common scale")


def read_logs(runs: str | Path) -> dict[str, list[dict[str, float]]]:
    """Name of a run -> its points, of the runs that have any.

    Raises:
        UserError: No such folder.
    """
    if not Path(runs).is_dir():
        raise UserError(f"no such folder of runs: {runs}")
    logs = {path.parent.name: _log(path) for path in sorted(Path(runs).glob(f"*/{METRICS}"))}
    return {name: points for name, points in logs.items() if points}


def curve_of(points: list[dict[str, float]], key: str) -> list[tuple[float, float]]:
    """A run's loss, over its own range, or online k-NN, percent, over the percent of its training."""
    last = max(point["step"] for point in points)
    curve = [(100 * p["step"] / last, p[key]) for p in points if math.isfinite(p.get(key, math.nan))]
    return _from_one_to_zero(curve) if key == "loss" and curve else curve


def _from_one_to_zero(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A curve over its own range, because losses of different methods have no common scale."""
    values = [y for _, y in curve]
    spread = max(values) - min(values)
    return [(x, (y - min(values)) / (spread or 1)) for x, y in curve]


def _log(path: Path) -> list[dict[str, float]]:
    """The points of Lightning's CSV logger; empty cells, and a last line that is being written, are left out."""
    points = []
    with path.open(newline="", errors="replace") as file:
        for row in csv.DictReader(file):
            point = {key: value for key, text in row.items() if (value := _number(text)) is not None}
            if point.get("step", 0) > 0:
                points.append(point)
    return points


def _number(text: object) -> float | None:
    try:
        value = float(text) if isinstance(text, str) else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def method_of(run: str) -> str:
    """The method of a run folder's name, METHOD-DATA-SEED-HASH."""
    return run.rsplit("-", 3)[0]

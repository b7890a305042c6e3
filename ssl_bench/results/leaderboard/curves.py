"""Training curves from the logs of runs."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from matplotlib.figure import Figure

from ssl_bench.results.leaderboard.plotting import Drawn, add_legend, drawable, look
from ssl_bench.results.text import plain
from ssl_bench.training.loggers import METRICS
from ssl_bench.utils.errors import UserError


def training_curves(runs: str | Path | None) -> Drawn:
    """Loss and online k-NN of each run over the training.

    Raises:
        UserError: No such folder.
    """
    if runs is None:
        return "no folder of runs given"
    if not Path(runs).is_dir():
        raise UserError(f"no such folder of runs: {runs}")
    logs = {path.parent.name: _log(path) for path in sorted(Path(runs).glob(f"*/{METRICS}"))}
    logs = {name: points for name, points in logs.items() if points}
    if not logs:
        return f"no {METRICS} with points in {plain(str(runs))}/*"
    kinds = list(dict.fromkeys(_method(name) for name in logs))
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    panels = figure.subplots(1, 2)
    named: set[str] = set()
    for name, points in logs.items():
        kind, last = _method(name), max(point["step"] for point in points)
        for axes, key in zip(panels, ("loss", "knn"), strict=True):
            curve = [(100 * p["step"] / last, p[key]) for p in points if math.isfinite(p.get(key, math.nan))]
            if curve:
                x, y = zip(*(curve if key == "knn" else _from_one_to_zero(curve)), strict=True)
                label = None if kind in named else drawable(kind, 28)
                every = max(1, len(curve) // 6)
                axes.plot(x, y, **look(kinds.index(kind)), markevery=every, markersize=4, label=label)
                named.add(kind)
    panels[0].set(xlabel="training, %", ylabel="loss, from its highest (1) to its lowest (0)")
    panels[1].set(xlabel="training, %", ylabel="online k-NN on held-out images, %")
    return add_legend(figure, panels[0], "a curve a run; losses of different methods have no common scale")


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


def _method(run: str) -> str:
    """The method of a run folder's name, METHOD-DATA-SEED-HASH."""
    return run.rsplit("-", 3)[0]

"""Training curves of the runs behind the rows, from their logs."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from ssl_bench.results.frame import spent_on
from ssl_bench.results.leaderboard.plotting import Drawn, add_legend, look, short_label
from ssl_bench.results.leaderboard.table import Table
from ssl_bench.results.text import plain
from ssl_bench.training.loggers import METRICS
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.identity import identify

ACROSS = {"knn": "TFLOP so far, those of teachers first", "loss": "percent of the training"}
LABELS = {"knn": "online k-NN on held-out images, %", "loss": "loss, from its highest (1) to its lowest (0)"}
SMOOTHED = 5  # points of a loss whose mean is drawn, of about a hundred


@dataclass(frozen=True)
class Run:
    """The log of one pre-training.

    Attributes:
        index: Of its aggregate in the table.
        points: Step and values, in the order of the steps.
        flops: Of the whole pre-training.
        before: FLOPs of its teachers.
    """

    index: int
    points: list[dict[str, float]]
    flops: float
    before: float

    def curve(self, key: str) -> list[tuple[float, float]]:
        """Online k-NN over TFLOP, or the smoothed loss over its own range and the percent of the training."""
        last = max(point["step"] for point in self.points)
        found = [(point["step"] / last, point[key]) for point in self.points if key in point]
        if key == "knn":
            return [((self.before + self.flops * x) / 1e12, y) for x, y in found]
        return [(100 * x, y) for x, y in _from_one_to_zero(_smoothed(found))]


def training_curves(tables: Sequence[Table], runs: str | Path | None) -> Drawn:
    """Online k-NN and loss of the runs behind the rows.

    Raises:
        UserError: No such folder.
    """
    if runs is None:
        return "no folder of runs given"
    table, found = runs_of(tables, runs)
    if table is None:
        return f"no {METRICS} of the rows' runs in {plain(str(runs))}/*"
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    panels = dict(zip(LABELS, figure.subplots(1, 2), strict=True))
    named: set[int] = set()
    for run in found:
        for key, axes in panels.items():
            if curve := run.curve(key):
                x, y = zip(*curve, strict=True)
                label = None if run.index in named else short_label(table.aggregates[run.index])
                every = max(1, len(curve) // 6)
                axes.plot(x, y, **look(table, run.index), markersize=4, markevery=every, label=label)
                named.add(run.index)
    for key, axes in panels.items():
        axes.set(xlabel=ACROSS[key], ylabel=LABELS[key])
    return add_legend(figure, panels["knn"], f"{table.title}; a curve a run")


def runs_of(tables: Sequence[Table], runs: str | Path) -> tuple[Table | None, list[Run]]:
    """The table with the most rows whose runs have logs, and these logs; None without any.

    Raises:
        UserError: No such folder.
    """
    if not Path(runs).is_dir():
        raise UserError(f"no such folder of runs: {runs}")
    logs = {path.parent.name.rpartition("-")[2]: path for path in sorted(Path(runs).glob(f"*/{METRICS}"))}
    found = [(table, _runs(table, logs)) for table in tables]
    table, most = max(found, key=lambda each: len(each[1]), default=(None, []))
    return (table, most) if most else (None, [])


def _runs(table: Table, logs: dict[str, Path]) -> list[Run]:
    made = []
    for index, aggregate in enumerate(table.aggregates):
        own = {identify(row["identity"]["encoder"])[:12]: row for row in aggregate.rows}  # as folders of runs are named
        for name in sorted(own.keys() & logs.keys()):
            flops, total = (own[name]["pretraining"] or {}).get("flops"), spent_on(own[name], "flops")
            if flops and total and (points := _log(logs[name])):
                made.append(Run(index, points, flops, total - flops))
    return made


def _smoothed(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each value the mean of those before it, ``SMOOTHED`` of them.

    Example:
        >>> _smoothed([(1, 4.0), (2, 2.0), (3, 0.0)])
        [(1, 4.0), (2, 3.0), (3, 2.0)]
    """
    values = [y for _, y in curve]
    windows = [values[max(0, at + 1 - SMOOTHED) : at + 1] for at in range(len(values))]
    return [(x, sum(window) / len(window)) for (x, _), window in zip(curve, windows, strict=True)]


def _from_one_to_zero(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A curve over its own range, because losses of different methods have no common scale."""
    values = [y for _, y in curve] or [0.0]
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

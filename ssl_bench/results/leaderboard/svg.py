"""Pictures inside the page: plain SVG without styles, links or fonts of its own; text is escaped, colours are shared.

The page stays one file, and these take no second to draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup, escape

from ssl_bench.results.frame import spent_on
from ssl_bench.results.leaderboard.aggregate import Cell
from ssl_bench.results.leaderboard.compute_figure import compute_front
from ssl_bench.results.leaderboard.curves import ACROSS, LABELS, runs_of
from ssl_bench.results.leaderboard.differences import NEVER_TRAINED
from ssl_bench.results.leaderboard.looks import colour_and_marker, place_of
from ssl_bench.results.leaderboard.plotting import main_evaluation
from ssl_bench.results.leaderboard.table import Table, metric_text
from ssl_bench.results.leaderboard.ticks import log_ticks, ticks
from ssl_bench.results.text import plain

WIDTH, HEIGHT = 640, 330  # of a picture, in units that the page scales
LEFT, RIGHT, TOP, BOTTOM = 52, 24, 12, 44
LEAST = 0.12  # decades of a scale of powers: costs that are meant to be the same stand beside each other
SHAPES = {  # of matplotlib's names, about 10 units across
    "o": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "s": "M-4.5-4.5h9v9h-9z",
    "^": "M0-5.5l5.5 10h-11z",
    "v": "M0 5.5l5.5-10h-11z",
    "<": "M-5.5 0l10 5.5v-11z",
    ">": "M5.5 0l-10 5.5v-11z",
    "D": "M0-6l6 6-6 6-6-6z",
    "P": "M-2-5.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z",
    "X": "M-5.5-3l2.5-2.5 3 3 3-3 2.5 2.5-3 3 3 3-2.5 2.5-3-3-3 3-2.5-2.5 3-3z",
    "*": "M0-6.5l1.7 4.2 4.5.3-3.5 2.9 1.1 4.4-3.8-2.4-3.8 2.4 1.1-4.4-3.5-2.9 4.5-.3z",
}


def interval_bar(cell: Cell, low: float, high: float) -> Markup:
    """A mean with its interval on the scale of its column.

    Args:
        cell: The number.
        low: Left end of the scale.
        high: Right end.
    """
    ends = [
        100 * (value - low) / ((high - low) or 1) for value in (cell.mean - cell.half, cell.mean, cell.mean + cell.half)
    ]
    a, mean, b = (f"{min(max(end, 0), 100):.1f}" for end in ends)
    lines = f'<path d="M0 4H100" class="rail"/><path d="M{a} 4H{b}" class="span"/><path d="M{mean} 0V8" class="mean"/>'
    return Markup(f'<svg class="bar" viewBox="-4 0 108 8" aria-hidden="true">{lines}</svg>')


class _Plot:
    """Axes on which points and lines are put in data units."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], log: bool) -> None:
        self.log = log
        span = [math.log10(x) for x in xs] if log else list(xs)
        length = max(span) - min(span)
        pad = max(0.06 * length, (LEAST - length) / 2) if log else 0.06 * (length or 1)
        self.x = (min(span) - pad, max(span) + pad)
        room = 0.06 * ((max(ys) - min(ys)) or 1)
        self.y = (min(ys) - room, max(ys) + room)
        self.parts: list[str] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point stands in the picture; an x of 0 on a scale of powers is the left end."""
        place = self.x[0] if self.log and x <= 0 else math.log10(x) if self.log else x
        across = (place - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def line(self, points: Sequence[tuple[float, float]], colour: str, name: str, dash: str = "") -> None:
        """A line through points."""
        path = "L".join("{:.1f} {:.1f}".format(*self.at(*point)) for point in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        title = f"<title>{escape(plain(name))}</title>"
        self.parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashed}>{title}</path>')

    def picture(self, across: str, up: str, label: str) -> Markup:
        """The whole picture with its axes."""
        marks = []
        for value in ticks(*self.y):
            y = self.at(10 ** self.x[0] if self.log else self.x[0], value)[1]
            marks.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" class="grid"/>')
            marks.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        left, right = self.x
        for value, text in log_ticks(10**left, 10**right) if self.log else [(v, f"{v:g}") for v in ticks(left, right)]:
            x = self.at(value, self.y[0])[0]
            marks.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" class="grid"/>')
            marks.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{text}</text>')
        marks.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">{escape(plain(across))} →</text>')
        body = "".join([*marks, *self.parts])
        named = f'role="img" aria-label="{escape(plain(label))}"'
        caption = f'<p class="axis">↑ {escape(plain(up))}</p>'
        return Markup(f'{caption}<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" {named}>{body}</svg>')


def compute_picture(table: Table) -> Markup | None:
    """Accuracy over the FLOPs of pre-training with the Pareto front; None where no row says what it cost."""
    evaluation = main_evaluation(table)
    points = [
        (each, flops, each.cells[evaluation])
        for each in table.aggregates
        if evaluation in each.cells and (flops := spent_on(each.first, "flops")) and each.method not in NEVER_TRAINED
    ]
    if not points:
        return None
    free = [each for each in table.aggregates if evaluation in each.cells and each.method in NEVER_TRAINED]
    ends = [end for _, _, cell in points for end in (cell.mean - cell.half, cell.mean + cell.half)]
    plot = _Plot([flops for _, flops, _ in points], [*ends, *(each.cells[evaluation].mean for each in free)], log=True)
    left, right = 10 ** plot.x[0], 10 ** plot.x[1]
    for each in free:
        mean, dash = each.cells[evaluation].mean, "5 4" if each.method == "untrained" else "2 3"
        plot.line([(left, mean), (right, mean)], "currentColor", f"{each.label}: {mean:.1f}, free", dash)
    front = compute_front(table, evaluation)
    steps = [(x, y) for (x, _), (_, y) in zip(front[1:], front, strict=False)]
    corners = (
        [point for step, corner in zip(front, [*steps, (right, front[-1][1])], strict=True) for point in (step, corner)]
        if front
        else []
    )
    if corners:
        plot.line(corners, "#8C8C8C", "Pareto front of the methods without labels, from the free baselines")
    keys = []
    for each, flops, cell in points:
        colour, marker = colour_and_marker(place_of(each.method))
        x, y = plot.at(flops, cell.mean)
        top, bottom = (plot.at(flops, cell.mean + sign * cell.half)[1] for sign in (1, -1))
        said = f"{each.label}: {cell.mean:.1f} ± {cell.half:.1f} at {flops:.1e} FLOPs"
        shape = _shape(colour, marker, each.labels)
        plot.parts.append(
            f"<g><title>{escape(plain(said))}</title>"
            f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="{colour}" stroke-width="1.5"/>'
            f'<g transform="translate({x:.1f} {y:.1f})">{shape}</g></g>'
        )
        keys.append(_key(colour, marker, each.label, each.labels))
    lines = [("5 4", "untrained"), ("2 3", "raw_pixels")]
    keys += [_line_key(dash, f"{name} (free)") for dash, name in lines if any(each.method == name for each in free)]
    keys += [_line_key("", "Pareto front, no labels")] if corners else []
    row = points[0][0].by_evaluation[evaluation][0]
    up = f"{evaluation} {metric_text(row)}: mean over seeds ± 95 % interval"
    picture = plot.picture("FLOPs of pre-training, teachers included", up, f"{table.title}: accuracy over compute")
    return picture + Markup(f'<ul class="key">{"".join(keys)}</ul>')


def curve_pictures(tables: Sequence[Table], runs: str | Path) -> list[Markup]:
    """Online k-NN and loss of the runs behind the rows, where the folder has any.

    Raises:
        UserError: No such folder.
    """
    table, found = runs_of(tables, runs)
    if table is None:
        return []
    pictures = []
    for key, label in LABELS.items():
        curves = [(table.aggregates[run.index], curve) for run in found if len(curve := run.curve(key)) > 1]
        if not curves:
            continue
        ends = [x for _, curve in curves for x, _ in (curve[0], curve[-1])]
        plot = _Plot(ends, [y for _, curve in curves for _, y in curve], log=False)
        keys = {}
        for each, curve in curves:
            colour, marker = colour_and_marker(place_of(each.method))
            plot.line(curve, colour, each.label)
            keys[each.label] = _key(colour, marker, each.label, each.labels)
        pictures.append(
            plot.picture(f"{ACROSS[key]}, a line a run", label, f"learning curves: {label}")
            + Markup(f'<ul class="key">{"".join(keys.values())}</ul>')
        )
    return pictures


def _shape(colour: str, marker: str, hollow: bool) -> str:
    fill = f'fill="none" stroke="{colour}" stroke-width="2"' if hollow else f'fill="{colour}"'
    return f'<path d="{SHAPES[marker]}" {fill}/>'


def _key(colour: str, marker: str, label: str, hollow: bool) -> str:
    shape = f'<svg viewBox="-8 -8 16 16" aria-hidden="true">{_shape(colour, marker, hollow)}</svg>'
    return f"<li>{shape}{escape(plain(label))}</li>"


def _line_key(dash: str, label: str) -> str:
    colour = "currentColor" if dash else "#8C8C8C"
    line = f'<path d="M-8 0H8" stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dash or "none"}"/>'
    return f'<li><svg viewBox="-8 -8 16 16" aria-hidden="true">{line}</svg>{escape(label)}</li>'

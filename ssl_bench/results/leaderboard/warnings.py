"""Sanity gates: what makes a number doubtful is said when it is measured, in its row, and in every table with it.

A feature matrix with NaN or without variance never becomes a row (``evaluations.evaluator.check_features``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssl_bench.results.leaderboard.significance import ALPHA

if TYPE_CHECKING:
    from ssl_bench.results.leaderboard.table import Table

LEGEND = """\
▲ ▼: significantly above or below the untrained backbone, by the test of the ranks; ▽: below it, but not
significantly."""
FREE_BASELINES = ("untrained", "raw_pixels")  # not pre-trained: nothing to be warned of


# One evaluation -------------------------------------------------------------------------------------------------------


# A table --------------------------------------------------------------------------------------------------------------


def arrow(table: Table, index: int, evaluation: str) -> str:
    """How a line stands to the untrained backbone in an evaluation: see ``LEGEND``; empty where it can't be said."""
    line, untrained, standing = table.aggregates[index], table.untrained, table.standings.get(evaluation)
    if untrained is None or line is untrained or standing is None:
        return ""
    cell, base = line.cell(evaluation), untrained.cell(evaluation)
    if cell is None or base is None:
        return ""
    if standing.p[index, table.aggregates.index(untrained)] < ALPHA:
        return "▲" if cell.mean > base.mean else "▼"
    return "▽" if cell.mean < base.mean else ""


def notes(table: Table) -> list[str]:
    """A sentence for each line that is below the untrained backbone, and for each warning of its rows."""
    said = []
    for index, line in enumerate(table.aggregates):
        marks = {evaluation: arrow(table, index, evaluation) for evaluation in table.evaluations}
        below = [evaluation for evaluation, mark in marks.items() if mark in ("▼", "▽")]
        if below and table.untrained and line.first["method"] not in FREE_BASELINES:
            parts = []
            for evaluation in below:
                mean, base = line.cells[evaluation].mean, table.untrained.cells[evaluation].mean
                how = "" if marks[evaluation] == "▼" else ", not significant"
                parts.append(f"{evaluation} {mean:.1f} against {base:.1f} ({mean - base:+.1f}{how})")
            what = "below the untrained backbone"
            what = what.upper() if "▼" in marks.values() else what
            said.append(f"{line.label} is {what}: {'; '.join(parts)}")
        said += [f"{line.label}: {text}" for text in line.warnings]
    return said

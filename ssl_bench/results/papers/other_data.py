"""Our rows of a table's methods on other data: columns of their own, never in one with a published number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ssl_bench.results.leaderboard.aggregate import Aggregate
from ssl_bench.results.papers.published import Number

LEGEND = (
    'Columns headed "ours on": our rows of the same method on the data set and backbone named, one cell a method, in '
    "its first row without °. They say nothing about that row's backbone and have no published counterpart, so no "
    "difference is taken."
)
UNLIKE = "other data or backbone than the published numbers"


@dataclass(frozen=True)
class OwnColumn:
    """One evaluation on one data set and backbone.

    Attributes:
        heading: Says all three.
        evaluation: Name of the protocol.
        lines: Row of the table -> the lines of its method: one for each recipe.
    """

    heading: str
    evaluation: str
    lines: dict[int, list[Aggregate]]

    def text(self, row: int) -> str:
        """A cell: accuracy with its interval, the leaderboard's marks, and the length of the pre-training."""
        return "; ".join(self._one(line) for line in self.lines.get(row, []))

    def _one(self, line: Aggregate) -> str:
        cell, made = line.cells[self.evaluation], line.first["pretraining"] or {}
        epochs = f"{made['epochs']:g} epochs" if "epochs" in made else "unknown epochs"
        data = made.get("data")
        of = f" of {data}" if data not in (None, line.first["evaluation"]["data"]) else ""
        return f"{cell.mean:.1f} ± {cell.half:.1f}{line.marks} ({epochs}{of})"

    def csv(self, name: str) -> list[list[Any]]:
        """Lines of a table's CSV: no reported number, no difference."""
        found = []
        for line in (line for lines in self.lines.values() for line in lines):
            cell, row = line.cells[self.evaluation], line.by_evaluation[self.evaluation][0]
            made = row["pretraining"] or {}
            numbers = [round(cell.mean, 4), round(cell.half, 4), "", cell.seeds]
            head = [name, row["method"], row["backbone"]["name"], made.get("data"), made.get("epochs")]
            head += [row["evaluation"]["data"], self.evaluation, row["headline"], "", "", ""]
            found.append([*head, *numbers, UNLIKE, ""])
        return found


def own_columns(numbers: Sequence[Sequence[Number]], unlike: Sequence[bool], tables: Sequence[Any]) -> list[OwnColumn]:
    """The columns of a table that our rows on other data fill.

    Args:
        numbers: The published numbers of each row of the table.
        unlike: Whether a row is marked as not like for like.
        tables: Of ``leaderboard.build``: those rows.
    """
    shown = {number.protocol for row in numbers for number in row}
    home: dict[str, int] = {}
    for at in sorted(range(len(numbers)), key=lambda at: unlike[at]):
        home.setdefault(numbers[at][0].method, at)
    columns = []
    for table in tables:
        for evaluation in table.evaluations:
            if evaluation.partition("-")[0] not in shown:
                continue
            lines: dict[int, list[Aggregate]] = {}
            for line in table.aggregates:
                if evaluation in line.cells and line.first["method"] in home:
                    lines.setdefault(home[line.first["method"]], []).append(line)
            where = (
                f"{table.aggregates[0].first['evaluation']['data']}, {table.aggregates[0].first['backbone']['name']}"
            )
            if lines:
                columns.append(OwnColumn(f"ours on {where}: {evaluation}", evaluation, lines))
    return columns

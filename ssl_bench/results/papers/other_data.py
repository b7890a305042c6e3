"""Our rows of a table's methods on other data: columns of their own, never in one with a published number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ssl_bench.results.leaderboard.aggregate import Aggregate
from ssl_bench.results.leaderboard.table import Table
from ssl_bench.results.papers.published import Number

LEGEND = (
    'Columns headed "ours on": our rows of the same method on the data set and backbone named, one cell a method, in '
    "its first row without °. They don't measure that row's backbone and have no published counterpart, so there is no "
    "difference."
)
UNLIKE = "other data or backbone than the published numbers"


@dataclass(frozen=True)
class OwnColumn:
    """One evaluation on one data set and backbone.

    Attributes:
        heading: Says all three.
        evaluation: Name of the protocol.
        aggregates: Row of the table -> the aggregates of its method: one for each recipe.
    """

    heading: str
    evaluation: str
    aggregates: dict[int, list[Aggregate]]

    def text(self, row: int) -> str:
        """A cell: accuracy with its interval, the leaderboard's footnotes, and the length of the pre-training."""
        return "; ".join(map(self._one, self.aggregates.get(row, [])))

    def _one(self, aggregate: Aggregate) -> str:
        cell, row = aggregate.cells[self.evaluation], aggregate.by_evaluation[self.evaluation][0]
        made = row["pretraining"] or {}
        epochs = f"{made['epochs']:g} epochs" if "epochs" in made else "unknown epochs"
        data = made.get("data")
        of = f" of {data}" if data not in (None, row["evaluation"]["data"]) else ""
        return f"{cell.mean:.1f} ± {cell.half:.1f}{aggregate.footnotes} ({epochs}{of})"

    def records(self) -> list[dict[str, Any]]:
        """Lines of a table's CSV: no reported number, no difference."""
        found = []
        for aggregate in (aggregate for members in self.aggregates.values() for aggregate in members):
            cell, row = aggregate.cells[self.evaluation], aggregate.by_evaluation[self.evaluation][0]
            made = row["pretraining"] or {}
            found.append(
                {
                    "method": row["method"],
                    "backbone": row["backbone"]["name"],
                    "pretrain_data": made.get("data"),
                    "epochs": made.get("epochs"),
                    "eval_dataset": row["evaluation"]["data"],
                    "column": self.evaluation,
                    "metric": row["headline"],
                    "measured": round(cell.mean, 4),
                    "half_interval_95": round(cell.half, 4),
                    "seeds": cell.seeds,
                    "unlike": UNLIKE,
                }
            )
        return found


def own_columns(
    numbers: Sequence[Sequence[Number]], unlike: Sequence[bool], tables: Sequence[Table]
) -> list[OwnColumn]:
    """The columns of a table that our rows on other data fill.

    Args:
        numbers: The published numbers of each row of the table.
        unlike: Whether a row is marked as not like for like.
        tables: Of ``build``: those rows.
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
            members: dict[int, list[Aggregate]] = {}
            for aggregate in table.aggregates:
                if evaluation in aggregate.cells and aggregate.method in home:
                    members.setdefault(home[aggregate.method], []).append(aggregate)
            row = table.aggregates[0].first
            where = f"{row['evaluation']['data']}, {row['backbone']['name']}"
            if members:
                columns.append(OwnColumn(f"ours on {where}: {evaluation}", evaluation, members))
    return columns

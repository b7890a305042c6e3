"""Which rows of a folder a leaderboard shows: by name, or by what the pre-training took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ssl_bench.results.frame import COMPARABLE, spent_on, to_frame
from ssl_bench.results.leaderboard.aggregate import Aggregate
from ssl_bench.results.rows.row import Row
from ssl_bench.results.text import plain
from ssl_bench.utils.errors import UserError, unknown


@dataclass(frozen=True)
class Selection:
    """What to show of the rows; everything when left as it is.

    Args:
        methods: Names of methods.
        evaluations: Names of evaluations.
        categories: Categories of methods.
        max_flops: Of pre-training, teachers included: the equal-compute view.
        max_images: Images seen in pre-training, likewise.
    """

    methods: Sequence[str] = ()
    evaluations: Sequence[str] = ()
    categories: Sequence[str] = ()
    max_flops: float | None = None
    max_images: float | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self == Selection()

    @property
    def limited(self) -> bool:
        """Whether this is an equal-compute view."""
        return self.max_flops is not None or self.max_images is not None

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that are wanted; external weights have no known cost and never pass a limit.

        Raises:
            UserError: A name that no row has, or nothing is left.
        """
        for what, wanted, present in (
            ("method", self.methods, {row["method"] for row in rows}),
            ("evaluation", self.evaluations, {row["evaluation"]["name"] for row in rows}),
            ("category", self.categories, {row["category"] for row in rows if row["category"]}),
        ):
            for name in wanted:
                if name not in present:
                    raise unknown(what, name, map(plain, present))
        kept = [row for row in rows if self._keeps(row)]
        if rows and not kept:
            raise UserError(f"no row passes: {self.text()}")
        return kept

    def _keeps(self, row: Row) -> bool:
        named = (
            (not self.methods or row["method"] in self.methods)
            and (not self.evaluations or row["evaluation"]["name"] in self.evaluations)
            and (not self.categories or row["category"] in self.categories)
        )
        limits = ((self.max_flops, "flops"), (self.max_images, "images_seen"))
        return named and all(
            limit is None or ((cost := spent_on(row, key)) is not None and cost <= limit) for limit, key in limits
        )

    def best(self, aggregates: Sequence[Aggregate]) -> list[Aggregate]:
        """In an equal-compute view the best aggregate of each method, otherwise all.

        Args:
            aggregates: The best first.
        """
        if not self.limited:
            return list(aggregates)
        first: dict[str, Aggregate] = {}
        for aggregate in aggregates:
            first.setdefault(aggregate.method, aggregate)
        return list(first.values())

    def text(self) -> str:
        """What was asked for, in words; empty for everything."""
        parts = [
            f"{what} {', '.join(names)}"
            for what, names in (
                ("methods", self.methods),
                ("evaluations", self.evaluations),
                ("categories", self.categories),
            )
            if names
        ]
        if self.max_flops is not None:
            parts.append(f"the best of each method at {self.max_flops:.3g} FLOPs of pre-training or fewer")
        if self.max_images is not None:
            parts.append(f"the best of each method at {self.max_images:,.0f} images seen or fewer")
        return "; ".join(parts)


def newest(rows: Sequence[Row], warn: Callable[[str], None]) -> list[Row]:
    """Without the rows that can't share a column with the newest: of another version, settings or file of an evaluator.

    Args:
        rows: In any order, which is kept.
        warn: Is given a sentence for each evaluation of which some were left out.
    """
    frame = to_frame(rows).assign(time=[row["made"]["time"] for row in rows])
    out: set[int] = set()
    for _, part in frame.groupby([*COMPARABLE, "evaluation"]):
        if part["protocol"].nunique() > 1:
            latest = part["protocol"].iloc[part["time"].argmax()]
            older = part[part["protocol"] != latest]
            out.update(older.index)
            column = f"{part['evaluation'].iloc[0]} on {part['data'].iloc[0]}"
            files = ", ".join([*older["file"][:3], *(["..."] if len(older) > 3 else [])])
            warn(
                plain(
                    f"{column}: {len(older)} rows are of an earlier version, settings or file of the evaluation and "
                    f"left out ({files}); measure them again, or take them out of the folder"
                )
            )
    return [row for at, row in enumerate(rows) if at not in out]

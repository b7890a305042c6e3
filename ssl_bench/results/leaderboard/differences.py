"""Each aggregate against the untrained network that it started from, and what a table must not hide."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ssl_bench.results.leaderboard.aggregate import Aggregate
from ssl_bench.results.leaderboard.significance import ALPHA, Standing
from ssl_bench.utils.starts import start_of

NEVER_TRAINED = ("untrained", "raw_pixels")  # nothing went wrong in their pre-training


@dataclass(frozen=True)
class Difference:
    """An aggregate against its untrained network in one evaluation.

    Attributes:
        mean: Of the aggregate.
        untrained: Mean of the untrained network.
        p: Of no difference, after Holm's correction; None in an evaluation that isn't ranked.
    """

    mean: float
    untrained: float
    p: float | None

    @property
    def points(self) -> float:
        """The difference, in the unit of the metric."""
        return self.mean - self.untrained

    @property
    def arrow(self) -> str:
        """A mark of ``legends.ARROWS``; empty for one that is better but not significantly."""
        if self.p is None:
            return ""
        if self.p < ALPHA:
            return "▲" if self.points > 0 else "▼"
        return "▽" if self.points < 0 else ""


def untrained_indices(aggregates: Sequence[Aggregate]) -> list[int | None]:
    """For each aggregate the index of the untrained network it started from: with the same backbone and initialisation.

    None where no such network was evaluated, and for the untrained networks themselves.
    """
    at = {start_key(each): index for index, each in reversed([*enumerate(aggregates)]) if each.method == "untrained"}
    return [None if each.method == "untrained" else at.get(start_key(each)) for each in aggregates]


def start_key(aggregate: Aggregate) -> str:
    """Equal for aggregates that started from the same network."""
    return json.dumps(start_of(aggregate.first["backbone"]), sort_keys=True)


def differences(
    aggregates: Sequence[Aggregate], standings: Mapping[str, Standing]
) -> dict[tuple[int, str], Difference]:
    """(Index of an aggregate, name of an evaluation) -> its difference, where both have a row."""
    found = {}
    for index, base in enumerate(untrained_indices(aggregates)):
        if base is None:
            continue
        for evaluation, cell in aggregates[index].cells.items():
            other, standing = aggregates[base].cell(evaluation), standings.get(evaluation)
            if other is not None:
                p = float(standing.p[index, base]) if standing else None
                found[index, evaluation] = Difference(cell.mean, other.mean, p)
    return found


def warning_texts(aggregates: Sequence[Aggregate], found: Mapping[tuple[int, str], Difference]) -> list[str]:
    """A sentence for each aggregate that is below its untrained network, and for each warning of its rows.

    Args:
        aggregates: Of a table.
        found: Their `differences`.
    """
    said = []
    by_aggregate: dict[int, dict[str, Difference]] = {}
    for (at, name), each in sorted(found.items()):
        if each.arrow in ("▼", "▽"):
            by_aggregate.setdefault(at, {})[name] = each
    for index, aggregate in enumerate(aggregates):
        below = by_aggregate.get(index, {})
        if below and aggregate.method not in NEVER_TRAINED:
            parts = []
            for name, each in below.items():
                how = "" if each.arrow == "▼" else ", not significant"
                parts.append(f"{name} {each.mean:.1f} against {each.untrained:.1f} ({each.points:+.1f}{how})")
            significant = any(each.arrow == "▼" for each in below.values())
            what = "BELOW THE UNTRAINED NETWORK" if significant else "below the untrained network"
            said.append(f"{aggregate.label} is {what}: {'; '.join(parts)}")
        said += [f"{aggregate.label}: {text}" for text in aggregate.warnings]
    return said

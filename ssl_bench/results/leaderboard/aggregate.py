"""Lines of a leaderboard: rows that differ only in seed and evaluation, summed up with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
from scipy import stats

from ssl_bench.results.rows.row import Row, loaded
from ssl_bench.utils.files import content_hash


@dataclass(frozen=True)
class Cell:
    """Mean over seeds with a 95 % interval; NaN without a value."""

    mean: float
    half: float
    seeds: int
    pooling: str = ""


@dataclass(frozen=True)
class Aggregate:
    """One method under one recipe on one backbone: rows of several seeds and evaluations."""

    label: str
    rows: list[Row]

    @property
    def first(self) -> Row:
        """A row for everything that all of them share."""
        return self.rows[0]

    @cached_property
    def by_evaluation(self) -> dict[str, list[Row]]:
        """Name of an evaluation to its rows, in the order of seeds."""
        found: dict[str, list[Row]] = {}
        for row in sorted(self.rows, key=lambda row: (seed_of(row) is None, seed_of(row) or 0)):
            found.setdefault(row["evaluation"]["name"], []).append(row)
        return found

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """Name of an evaluation to its headline over the seeds."""
        return {name: summarise(rows) for name, rows in self.by_evaluation.items()}

    @cached_property
    def marks(self) -> str:
        """Footnotes: ¹ labels, ² another version of the source, ³ something from elsewhere, ⁴ warnings."""
        flags = self.first["flags"]
        external = any(flag.startswith("external") for flag in flags)
        stale = any(row.stale for row in self.rows)
        shown = (("¹", "labels" in flags), ("²", stale), ("³", external), ("⁴", self.warnings))
        return "".join(mark for mark, true in shown if true)

    @cached_property
    def warnings(self) -> list[str]:
        """What its rows say against themselves, each sentence once."""
        return list(dict.fromkeys(text for row in self.rows for text in row.values.get("warnings", [])))

    @property
    def pretrained_on(self) -> str | None:
        """The data set of the pre-training; None without one, and for weights that don't say."""
        made = self.first["pretraining"] or {}
        return made.get("data") if made.get("images_seen") != 0 and made.get("data") != "unknown" else None

    @property
    def labelled(self) -> bool:
        """Whether labels went into it: a yardstick that doesn't compete."""
        return "labels" in self.first["flags"]

    def cell(self, evaluation: str, metric: str | None = None) -> Cell | None:
        """A metric of an evaluation over the seeds; its headline unless named. None when no row has it."""
        if metric is None:
            return self.cells.get(evaluation)
        rows = [row for row in self.by_evaluation.get(evaluation, []) if metric in row["metrics"]]
        return summarise(rows, metric) if rows else None


def aggregate_rows(rows: Sequence[Row]) -> list[Aggregate]:
    """Rows that differ only in seed and evaluation form a line; a method with two recipes has two lines."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        recipe = {k: v for k, v in (row["recipe"] or {}).items() if k not in ("seed", "hash")}
        images = (row["pretraining"] or {}).get("fingerprint")
        made = [recipe, images] if recipe else loaded(row.values)
        groups.setdefault((row["method"], quick_hash(made)[:6]), []).append(row)
    count: dict[str, int] = {}
    for method, _ in groups:
        count[method] = count.get(method, 0) + 1
    return [
        Aggregate(method if count[method] == 1 else f"{method} ({key})", members)
        for (method, key), members in groups.items()
    ]


def summarise(rows: Sequence[Row], metric: str | None = None) -> Cell:
    """Mean and 95 % interval of one metric over seeds.

    The half-width is sqrt(s^2 + b^2): s of Student's t over the seeds, b the mean half-width over test images.
    """
    metrics = [row["metrics"][metric or row["headline"]] for row in rows]
    values = [m["value"] for m in metrics]
    n = len(values)
    mean = math.fsum(values) / n
    images = math.fsum((m["high"] - m["low"]) / 2 for m in metrics) / n
    seeds = _quantile(n - 1) * math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else 0.0
    poolings = sorted({row["evaluation"]["pooling"] for row in rows})
    return Cell(mean, math.hypot(seeds, images), n, "/".join(poolings))


def seed_of(row: Row) -> int | None:
    """The seed of the pre-training; None for weights from elsewhere."""
    return (row["recipe"] or {}).get("seed")


def seed_values(rows: Sequence[Row]) -> str:
    """The headline of each seed, in the order of seeds: "23.6, 22.9, 24.1"; "–" without one."""
    return ", ".join(f"{row['metrics'][row['headline']]['value']:.1f}" for row in rows) or "–"


def trained(row: Row) -> bool:
    """Whether there was a pre-training of ours."""
    return bool(row["pretraining"] and row["pretraining"]["images_seen"])


def spent_flops(row: Row) -> float | None:
    """FLOPs of the pre-training, those of its teachers included; None for weights from elsewhere."""
    return _spent(row, "flops")


def spent_images(row: Row) -> float | None:
    """Images seen in pre-training, those of its teachers included; None for weights from elsewhere."""
    return _spent(row, "images_seen")


def _spent(row: Row, key: str) -> float | None:
    made = row["pretraining"]
    if not row["recipe"] or not made or made.get(key) is None:
        return None
    return made[key] + sum(teacher.get(key) or 0 for teacher in (made.get("teachers") or {}).values())


SPENT = ("views", "epochs", "patches", "FLOPs", "time", "memory")


def cost_texts(line: Aggregate) -> list[str]:
    """What the pre-training of a line took, as text, in the order of ``SPENT``."""
    made = [row["pretraining"] for row in line.rows if trained(row)]
    if not made:
        return ["–"] * len(SPENT)
    first = made[0]
    patches = f"{first['patches_per_image']:g}"
    if first["patches_encoded_without_gradient"]:
        patches += f" ({first['patches_encoded_without_gradient'] / first['images_seen']:g})"
    seconds = float(np.mean([m["wall_seconds"] for m in made]))
    memory = max(m["peak_memory_bytes"] for m in made)
    return [
        line.first["views"] or "–",
        f"{first['epochs']:g}",
        patches,
        f"{first['flops']:.1e}",
        f"{seconds:.0f} s" if seconds < 6000 else f"{seconds / 3600:.1f} h",
        f"{memory / 1e6:,.0f} MB",
    ]


def teacher_texts(line: Aggregate) -> list[str]:
    """One sentence for each teacher of a line: what it is, what it cost, and how its codes are used."""
    spent = line.first["pretraining"] or {}
    said = []
    for keyword, teacher in spent.get("teachers", {}).items():
        facts = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in teacher["facts"].items())
        said.append(
            f"{line.label}: {keyword} {teacher['method']}, trained on the same images in "
            f"{teacher['wall_seconds']:.0f} s and {teacher['flops']:.1e} FLOPs, which come on top; {facts}"
        )
    if not said and "teacher" in spent.get("facts", {}):
        about = spent["facts"]["teacher"]
        said.append(f"{line.label}: teacher {about['name']}, {about['source']}")
    return said


@cache
def _quantile(freedom: int) -> float:
    return float(stats.t.ppf(0.975, freedom))


def quick_hash(value: Any) -> str:
    """``content_hash``, remembered: rows repeat the same recipes and settings."""
    return _hash_of(json.dumps(value, sort_keys=True))


@lru_cache(maxsize=65536)
def _hash_of(text: str) -> str:
    return content_hash(json.loads(text))

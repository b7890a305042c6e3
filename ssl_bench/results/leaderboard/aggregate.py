"""Aggregates: rows that differ only in seed and evaluation, averaged over the seeds with intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import special  # not stats, which takes a second to import

from ssl_bench.results.frame import is_external, pretrained_on, seed_of, to_frame
from ssl_bench.results.rows.row import Row
from ssl_bench.utils.flags import COLLAPSED
from ssl_bench.utils.starts import start_labels, start_of


@dataclass(frozen=True)
class Cell:
    """Mean over seeds, and the half-width of its 95 % interval."""

    mean: float
    half: float
    seeds: int
    pooling: str = ""


@dataclass(frozen=True, eq=False)
class Aggregate:
    """One method under one recipe on one backbone.

    Attributes:
        label: Its name in tables.
        by_evaluation: Name of an evaluation -> its rows, in the order of seeds.
        cells: Name of an evaluation -> its headline over the seeds.
    """

    label: str
    by_evaluation: Mapping[str, Sequence[Row]]
    cells: Mapping[str, Cell]

    @cached_property
    def rows(self) -> list[Row]:
        """Its rows of all evaluations."""
        return [row for rows in self.by_evaluation.values() for row in rows]

    @property
    def first(self) -> Row:
        """A row for everything that all of them share."""
        return self.rows[0]

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.first["method"]

    @cached_property
    def seeds(self) -> int:
        """How many seeds its rows have; external weights count as one."""
        return len({seed_of(row) for row in self.rows})

    @cached_property
    def footnotes(self) -> str:
        """Marks of ``legends.FOOTNOTES``."""
        stale = any(row.stale for row in self.rows)
        shown = (("¹", self.labels), ("²", stale), ("³", is_external(self.first)), ("⁴", self.warnings))
        return "".join(mark for mark, true in shown if true)

    @cached_property
    def warnings(self) -> list[str]:
        """The warnings of its rows, each once."""
        return list(dict.fromkeys(text for row in self.rows for text in row.values.get("warnings", [])))

    @property
    def backbone(self) -> str:
        """Name of its backbone; a dash for raw pixels, which are those of every backbone."""
        return "–" if self.method == "raw_pixels" else self.first["backbone"]["name"]

    @property
    def settings(self) -> dict[str, object]:
        """Settings of its method and options of its backbone; nothing without a recipe."""
        recipe = self.first["recipe"] or {}
        return {**recipe.get("settings", {}), **recipe.get("backbone", {})}

    @property
    def training(self) -> dict[str, object]:
        """Epochs, batch size, rate and so on of its recipe; nothing without one."""
        return dict((self.first["recipe"] or {}).get("training") or {})

    @property
    def pretrained_on(self) -> str | None:
        """The data set of the pre-training; None without one, and where it isn't known."""
        return pretrained_on(self.first)

    @property
    def labels(self) -> bool:
        """Whether labels went into it: a baseline that doesn't compete."""
        return "labels" in self.first["flags"]

    @cached_property
    def collapsed(self) -> bool:
        """Whether an encoder of its rows had collapsed: such a number has no rank."""
        return any(COLLAPSED in row["flags"] for row in self.rows)

    @property
    def competes(self) -> bool:
        """Whether its numbers stand beside those of other methods: without labels, and no encoder had collapsed."""
        return not (self.labels or self.collapsed)

    @cached_property
    def _metrics(self) -> dict[tuple[str, str], Cell]:
        found = _cells(to_frame(self.rows, every_metric=True), ["evaluation", "metric"])
        return {(evaluation, metric): cell for (evaluation, metric), cell in found}

    def cell(self, evaluation: str, metric: str | None = None) -> Cell | None:
        """A metric of an evaluation over the seeds; its headline unless named. None when no row has it."""
        return self.cells.get(evaluation) if metric is None else self._metrics.get((evaluation, metric))


def aggregate_rows(rows: Sequence[Row], frame: pd.DataFrame | None = None) -> list[Aggregate]:
    """Average over seeds: a method with two recipes becomes two aggregates, labelled by what tells them apart.

    Args:
        rows: In any order.
        frame: ``to_frame(rows)``, or some of its lines; made here when left out.
    """
    frame = to_frame(rows) if frame is None else frame
    frame = frame.sort_values("seed", kind="stable", na_position="last")
    keys = ["method", "recipe", "evaluation"]
    members = frame.groupby(keys, sort=False).indices
    found: dict[tuple[str, str], tuple[dict[str, list[Row]], dict[str, Cell]]] = {}
    for key, cell in _cells(frame, keys):
        method, recipe, evaluation = key
        by_evaluation, cells = found.setdefault((method, recipe), ({}, {}))
        by_evaluation[evaluation] = [rows[at] for at in frame.index[members[key]]]
        cells[evaluation] = cell
    made = [Aggregate(method, *parts) for (method, _), parts in found.items()]
    return [replace(each, label=label) for each, label in zip(made, labels(made, [r for _, r in found]), strict=True)]


def labels(aggregates: Sequence[Aggregate], recipes: Sequence[str] = ()) -> list[str]:
    """The method; where it is there more than once, with what tells it apart.

    That is the backbone, for untrained networks all options in which they differ, for others on one backbone the
    settings of method or backbone in which they differ, or else of the training, and else the hash of the recipe, or a
    number without ``recipes``.
    """
    hows = [each.backbone for each in aggregates]
    untrained = [at for at, each in enumerate(aggregates) if each.method == "untrained"]
    starts = start_labels([start_of(aggregates[at].first["backbone"]) for at in untrained])
    for at, start in zip(untrained, starts, strict=True):
        hows[at] = start
    several = Counter(each.method for each in aggregates)
    groups: dict[tuple[str, str], list[int]] = {}
    for at, each in enumerate(aggregates):
        groups.setdefault((each.method, hows[at]), []).append(at)
    for same in groups.values():
        hashes = [recipes[at][:6] if recipes else str(number) for number, at in enumerate(same, start=1)]
        by_training = _settings_labels([aggregates[at].training for at in same], hashes)
        differ = dict.fromkeys(k for at in same for k in differing_settings(aggregates[same[0]], aggregates[at]))
        settings = [{key: aggregates[at].settings.get(key) for key in differ} for at in same]
        for at, how in zip(same, _settings_labels(settings, by_training), strict=True):
            hows[at] = how if len(same) > 1 else hows[at]
    return [
        f"{each.method} ({how})" if several[each.method] > 1 else each.method
        for each, how in zip(aggregates, hows, strict=True)
    ]


def differing_settings(one: Aggregate, other: Aggregate) -> list[str]:
    """The settings in which two recipes differ, but for lengths in epochs that are the same part of their trainings."""

    def part(each: Aggregate, key: str) -> float | None:
        value, epochs = each.settings.get(key), each.training.get("epochs")
        numbers = isinstance(value, int | float) and not isinstance(value, bool) and isinstance(epochs, int | float)
        return value / epochs if numbers and epochs else None  # type: ignore[operator]

    found = []
    for key in dict.fromkeys([*one.settings, *other.settings]):
        if one.settings.get(key) != other.settings.get(key):
            a, b = part(one, key), part(other, key)
            if a is None or b is None or not math.isclose(a, b, rel_tol=0.01):  # suites round them to three digits
                found.append(key)
    return found


def _settings_labels(settings: Sequence[Mapping[str, object]], otherwise: Sequence[str]) -> list[str]:
    """For each of several recipes, the first setting that tells all of them apart, or all in which they differ, if two.

    Example:
        >>> _settings_labels([{"n_local": 4, "scale": 0.4}, {"n_local": 0, "scale": 0.1}], ["a1", "b2"])
        ['n_local 4', 'n_local 0']
        >>> _settings_labels([{"n_local": 4}, {"n_local": 4}], ["a1", "b2"])
        ['a1', 'b2']
    """
    keys = dict.fromkeys(key for each in settings for key in each)
    differ = [key for key in keys if any(each.get(key) != settings[0].get(key) for each in settings)]
    for shown in [[key] for key in differ] + [differ] * (len(differ) == 2):
        labels = [", ".join(f"{key} {each.get(key)}" for key in shown) for each in settings]
        if len(set(labels)) == len(labels):
            return labels
    return list(otherwise)


def summarise(rows: Sequence[Row], metric: str | None = None) -> Cell:
    """Mean and 95 % interval over seeds of one metric of rows that differ only in seed; their headline unless named.

    The half-width is sqrt(s^2 + b^2): s of Student's t over the seeds, b the mean half-width over test images.
    """
    frame = to_frame(rows, every_metric=metric is not None)
    frame = frame if metric is None else frame[frame["metric"] == metric]
    ((_, cell),) = _cells(frame.assign(all=0), ["all"])
    return cell


def _cells(frame: pd.DataFrame, by: list[str]) -> list[tuple[tuple[str, ...], Cell]]:
    """Groups of the lines of a frame, in their order, with their mean over seeds."""
    groups = frame.assign(image_half=(frame["high"] - frame["low"]) / 2).groupby(by, sort=False)
    found = groups.agg(
        mean=("value", "mean"), error=("value", "sem"), images=("image_half", "mean"), seeds=("value", "size")
    )
    quantile = special.stdtrit(np.maximum(found["seeds"] - 1, 1), 0.975)
    half = np.hypot(quantile * found["error"].fillna(0), found["images"])  # one seed has no standard error
    poolings = frame[[*by, "pooling"]].drop_duplicates().sort_values("pooling").groupby(by)["pooling"].agg("/".join)
    keys = [key if isinstance(key, tuple) else (key,) for key in found.index]
    columns = (found["mean"], half, found["seeds"], poolings.reindex(found.index))
    lines = zip(*(column.tolist() for column in columns), strict=True)
    return list(zip(keys, (Cell(*line) for line in lines), strict=True))


def seed_values(rows: Sequence[Row]) -> str:
    """The headline of each seed, in the order of seeds: "23.6, 22.9, 24.1"; "–" without one."""
    return ", ".join(f"{row['metrics'][row['headline']]['value']:.1f}" for row in rows) or "–"

"""Two rows, or two methods of a folder, side by side: what differs, and whether the difference is more than chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_bench.results.frame import quick_hash
from ssl_bench.results.leaderboard.aggregate import Aggregate, aggregate_rows, seed_values, summarise
from ssl_bench.results.leaderboard.significance import draws_variance, interval_p, paired_p
from ssl_bench.results.leaderboard.table import Table, build
from ssl_bench.results.rows.predictions import Predictions, correctness
from ssl_bench.results.rows.row import Row, read_rows
from ssl_bench.results.text import plain, terminal_table
from ssl_bench.utils.errors import UserError, unknown

PARTS = ["method", "category", "backbone", "views", "pretraining", "flags", "deviations", "weights", "code", "made"]
NO_CLASSES = (
    "Per class: rows store whether (or how often) the prediction of each image was right, not its class; --data names "
    "the data set to take the classes from. Which wrong class was predicted is not stored."
)


def compare(
    a: str,
    b: str,
    *,
    rows: str | Path | None = None,
    data: str | None = None,
    show: Callable[[str], Any] = print,
) -> None:
    """Set two rows or two methods side by side: the Python form of ``ssl-bench compare``.

    Args:
        a: A row file, or a method of the folder: its label in the leaderboard, or its name where that is unique.
        b: Likewise.
        rows: The folder with ``rows/``.
        data: Data set with the labels of the test images, for the wins and losses by class.
        show: What to do with each block of text.

    Raises:
        UserError: No such row or method, nothing in common, or other test images than those of ``data``.
    """
    _show(a, b, _read(a, b, rows, show), data, show)


def _read(a: str, b: str, folder: str | Path | None, show: Callable[[str], Any]) -> list[Row]:
    """The two rows, or all of the folder."""
    if _are_files(a, b):
        return [Row.read(Path(a)), Row.read(Path(b))]
    if folder is None:
        raise UserError(f"{a} and {b}: give two row files (.json), or two methods and their folder with --rows DIR")
    return read_rows(folder, lambda line: show(plain(f"WARNING: {line}")))


def _are_files(a: str, b: str) -> bool:
    return a.endswith(".json") and b.endswith(".json")


def _show(a: str, b: str, rows: Sequence[Row], data: str | None, show: Callable[[str], Any]) -> None:
    pairs = _pairs(a, b, rows)
    if not pairs:
        raise UserError(f"{a} and {b} have no evaluation on the same data in common")
    first, second = pairs[0]
    show(_differences("Recipe", _recipe(first.first), _recipe(second.first), (a, b)))
    show(_differences("Origin", _origin(first.first), _origin(second.first), (a, b)))
    for left, right in pairs:
        for evaluation in sorted(set(left.by_evaluation) & set(right.by_evaluation)):
            for block in _evaluation(left.by_evaluation[evaluation], right.by_evaluation[evaluation], (a, b), data):
                show(block)


def _pairs(a: str, b: str, rows: Sequence[Row]) -> list[tuple[Aggregate, Aggregate]]:
    """Aggregates that have an evaluation in common, one pair for each table."""
    if _are_files(a, b):
        (left,), (right,) = aggregate_rows(rows[:1]), aggregate_rows(rows[1:])
        return [(left, right)]
    tables = build(rows)
    labels = {each.label for table in tables for each in table.aggregates}
    for name in (a, b):
        if not any(_named(table, name) for table in tables):
            raise unknown("method", name, map(plain, labels))
    found = [(_named(table, a), _named(table, b)) for table in tables]
    pairs = [(left, right) for left, right in found if left and right]
    return [(left, right) for left, right in pairs if set(left.by_evaluation) & set(right.by_evaluation)]


def _named(table: Table, name: str) -> Aggregate | None:
    """The aggregate of a label, or the only one of a method."""
    found = [each for each in table.aggregates if each.label == name]
    found = found or [each for each in table.aggregates if each.method == name]
    return found[0] if len(found) == 1 else None


# What differs ---------------------------------------------------------------------------------------------------------


def flatten(value: Any, name: str = "") -> dict[str, str]:
    """Nested keys as dotted names; floats with six significant digits.

    Example:
        >>> flatten({"a": {"b": 1}, "c": [2], "flops": 5475658825728.125})
        {'a.b': '1', 'c': '[2]', 'flops': '5.47566e+12'}
    """
    if isinstance(value, float):
        return {name: f"{value:.6g}"}
    if not isinstance(value, Mapping):
        return {name: str(value)}
    return {
        k: v for key, item in value.items() for k, v in flatten(item, f"{name}.{key}" if name else str(key)).items()
    }


def _recipe(row: Row) -> dict[str, str]:
    return flatten({key: value for key, value in (row["recipe"] or {}).items() if key != "seed"})


def _origin(row: Row) -> dict[str, str]:
    return flatten({key: row.values.get(key) for key in [*PARTS, "versions"]})


def _differences(title: str, a: Mapping[str, str], b: Mapping[str, str], names: tuple[str, str]) -> str:
    keys = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
    if not keys:
        return f"{title}: no difference"
    lines = [[key, a.get(key, "–"), b.get(key, "–")] for key in keys]
    return terminal_table(f"{title}: what differs (of the first seed)", ["key", *names], lines, 3, wrap=True)


# Who is better --------------------------------------------------------------------------------------------------------


def _evaluation(a: Sequence[Row], b: Sequence[Row], names: tuple[str, str], data: str | None) -> Iterator[str]:
    # Settings as the identity has them: one that is left out has the default of the version.
    mine, other = ({**row["evaluation"], **row["identity"]["evaluation"]} for row in (a[0], b[0]))
    yield plain(f"== {mine['name']} on {mine['data']}")
    for name, rows in zip(names, (a, b), strict=True):
        values = [row["metrics"][row["headline"]]["value"] for row in rows]
        yield plain(f"{name}: {rows[0]['headline']} {np.mean(values):.2f} (by seed: {seed_values(rows)})")
    for key, what in (("images", "images"), ("version", "versions"), ("settings", "settings")):
        if quick_hash(mine[key]) != quick_hash(other[key]):
            yield f"not comparable: other {what} of the evaluation"
            return
    left, right = correctness(a), correctness(b)
    if left is None or right is None:
        yield f"{_by_intervals(a, b)} (no predictions for each image: 95 % intervals compared as independent)"
        return
    yield paired_text(left, right, names, [draws_variance(a, left), draws_variance(b, right)])
    if a[0]["task"] != "classification":  # images have several classes, or none
        return
    yield _by_class(a[0], left, right, names, data) if data else NO_CLASSES


def paired_text(a: Predictions, b: Predictions, names: tuple[str, str], drawn: Sequence[float] | None = None) -> str:
    """The paired test and the counts behind it.

    Args:
        a: (seeds, n) bool, or shares in [0, 1].
        b: Likewise, on the same images.
        names: Of the two.
        drawn: As in `paired_p`.
    """
    p = float(paired_p([a, b], drawn)[0, 1])
    over = "the variance over seeds" if min(len(a), len(b)) > 1 else _one_seed(a, b, names)
    difference = 100 * (a.mean() - b.mean())
    if a.dtype != bool or b.dtype != bool:
        more_a, more_b = ahead(a, b)
        return plain(
            f"difference {difference:+.2f} points, p = {p:.2g} (paired over images, with {over} and the variance over "
            f"draws; not corrected for other comparisons). Images with a larger share of right predictions: {names[0]} "
            f"{more_a:.0f}, {names[1]} {more_b:.0f}, neither {a.shape[1] - more_a - more_b:.0f}"
        )
    only_a, only_b, both, none = disagreement(a, b)
    seeds = "" if len(a) == len(b) == 1 else ", mean over pairs of seeds"
    return plain(
        f"difference {difference:+.2f} points, p = {p:.2g} (paired, McNemar's score test with {over}; "
        f"not corrected for other comparisons). Images right{seeds}: both {both:.0f}, only {names[0]} {only_a:.0f}, "
        f"only {names[1]} {only_b:.0f}, neither {none:.0f}"
    )


def _one_seed(a: Predictions, b: Predictions, names: tuple[str, str]) -> str:
    """What a test with a single seed of a method leaves open."""
    single = [name for name, rows in zip(names, (a, b), strict=True) if len(rows) == 1]
    whom = "both" if len(single) == 2 else single[0]
    return f"one seed of {whom}: chance over the test images alone, of these encoders and not of the methods,"


def disagreement(a: Predictions, b: Predictions) -> tuple[float, float, float, float]:
    """Images that only a, only b, both and neither have right, the mean over all pairs of seeds.

    Example:
        >>> disagreement(np.array([[True, True, False]]), np.array([[True, False, False]]))
        (1.0, 0.0, 1.0, 1.0)
    """
    x, y = a.mean(0), b.mean(0)
    return tuple(float(part.sum()) for part in (x * (1 - y), (1 - x) * y, x * y, (1 - x) * (1 - y)))  # type: ignore[return-value]


def ahead(a: Predictions, b: Predictions) -> tuple[float, float]:
    """Images for a and for b: those that only it has right, or those of which it has a larger share right.

    Example:
        >>> ahead(np.array([[0.5, 0.5]]), np.array([[0.5, 0.75]]))
        (0.0, 1.0)
    """
    if a.dtype == b.dtype == bool:
        return disagreement(a, b)[:2]
    by = a.mean(0) - b.mean(0)
    return float((by > 0).sum()), float((by < 0).sum())


def _by_intervals(a: Sequence[Row], b: Sequence[Row]) -> str:
    x, y = summarise(a), summarise(b)
    p = float(interval_p([x.mean, y.mean], [x.half, y.half])[0, 1])
    return f"difference {x.mean - y.mean:+.2f} ± {np.hypot(x.half, y.half):.2f}, p = {p:.2g}"


def _by_class(row: Row, a: Predictions, b: Predictions, names: tuple[str, str], data: str) -> str:
    from ssl_bench.data.datasets import load

    test = load(data).test
    if test.fingerprint != row["evaluation"]["fingerprints"]["test"]:
        raise UserError(f"--data {data}: its test images are not those that {row.path.name} was measured on")
    labels = np.asarray(test.labels)
    if len(labels) != a.shape[1]:
        return f"no table by class: only {a.shape[1]:,} of {len(labels):,} test images have a prediction"
    found: list[tuple[float, list[str]]] = []
    for index, name in enumerate(test.classes):
        of = labels == index
        if of.any():
            x, y = a[:, of], b[:, of]
            difference = 100 * float(x.mean() - y.mean())
            texts = [str(name), f"{of.sum():,}", f"{100 * x.mean():.1f}", f"{100 * y.mean():.1f}", f"{difference:+.1f}"]
            found.append((difference, [*texts, *(f"{count:.0f}" for count in ahead(x, y))]))
    found.sort(key=lambda line: (-line[0], line[1]))
    wins, losses = sum(by > 0 for by, _ in found), sum(by < 0 for by, _ in found)
    title = f"By class: {names[0]} ahead in {wins}, {names[1]} in {losses} of {len(found)}"
    what = "only" if a.dtype == b.dtype == bool else "better:"
    header = ["class", "images", *names, "difference", f"{what} {names[0]}", f"{what} {names[1]}"]
    return terminal_table(title, header, [texts for _, texts in found], 1)

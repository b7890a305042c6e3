"""Ranks with ties: which differences between methods are more than chance, on the same test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from ssl_bench.metrics.quantiles import Z
from ssl_bench.results.leaderboard.aggregate import Aggregate
from ssl_bench.results.rows.predictions import Predictions, correctness
from ssl_bench.results.rows.row import Row

ALPHA = 0.05
# Tasks whose intervals, of the bootstrap or the jackknife, hold the draw of images alone.
RESAMPLED = ("segmentation", "video", "detection", "multilabel")
UNRANKED = ("diagnostics",)  # evaluators whose headline isn't better the larger it is


@dataclass(frozen=True, eq=False)
class Standing:
    """The ranks of one evaluation.

    Attributes:
        evaluation: Its name.
        ranks: Of each aggregate; None without a row, and of one that has collapsed.
        p: (M, M) float64, Holm's adjusted p-values; NaN without a row, 1 on the diagonal.
        paired: Whether the tests were over the predictions for each image.
    """

    evaluation: str
    ranks: list[int | None]
    p: np.ndarray[Any, np.dtype[np.float64]]
    paired: bool

    def text(self, index: int) -> str:
        """The rank of an aggregate: "2", "~2" where intervals were compared, "–" without one."""
        rank = self.ranks[index]
        return "–" if rank is None else f"{'' if self.paired else '~'}{rank}"


def standings(aggregates: Sequence[Aggregate], evaluations: Sequence[str]) -> dict[str, Standing]:
    """The ranks of aggregates in each evaluation that is ranked."""
    found = {}
    for evaluation in evaluations:
        rows = [row for aggregate in aggregates for row in aggregate.by_evaluation.get(evaluation, [])]
        if not any(row["evaluation"]["evaluator"] in UNRANKED for row in rows):
            found[evaluation] = _standing(evaluation, aggregates)
    return found


def _standing(evaluation: str, aggregates: Sequence[Aggregate]) -> Standing:
    at = [i for i, aggregate in enumerate(aggregates) if evaluation in aggregate.cells and not aggregate.collapsed]
    cells = [aggregates[index].cells[evaluation] for index in at]
    rows = [aggregates[index].by_evaluation[evaluation] for index in at]
    right = [predictions for members in rows if (predictions := correctness(members)) is not None]
    paired = len(right) == len(at)
    if paired:
        raw = paired_p(right, [draws_variance(*each) for each in zip(rows, right, strict=True)])
    else:
        raw = interval_p([cell.mean for cell in cells], [cell.half for cell in cells])
    adjusted = np.ones_like(raw)
    upper = np.triu_indices(len(at), 1)
    adjusted[upper] = holm(raw[upper])
    adjusted = np.minimum(adjusted, adjusted.T)
    means = np.array([cell.mean for cell in cells])
    better = (means[None] > means[:, None]) & (adjusted < ALPHA)
    ranks: list[int | None] = [None] * len(aggregates)
    p = np.full((len(aggregates), len(aggregates)), np.nan)
    p[np.ix_(at, at)] = adjusted
    for index, count in zip(at, better.sum(1), strict=True):
        ranks[index] = 1 + int(count)
    return Standing(evaluation, ranks, p, paired)


def mean_ranks(found: dict[str, Standing], count: int) -> list[float | None]:
    """Mean rank over evaluations of each of ``count`` aggregates; None for one without a row in some evaluation."""
    ranks = [[standing.ranks[index] for standing in found.values()] for index in range(count)]
    return [float(np.mean([r for r in each if r])) if each and None not in each else None for each in ranks]


# Tests ----------------------------------------------------------------------------------------------------------------


def paired_p(
    predictions: Sequence[Predictions], drawn: Sequence[float] | None = None
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Two-sided p-values of equal accuracy for all pairs of M methods on the same n images.

    With one seed each it is McNemar's score test (McNemar 1947): (b - c) / sqrt(b + c) of the images that only one of
    the two has right. With several, an image counts by the share of seeds (and of episodes or corruptions) that have it
    right, and the variance of the mean over seeds is added, with Welch's and Satterthwaite's degrees of freedom. So is
    what the draw of episodes adds: encoders share their episodes, which makes this cautious.

    Args:
        predictions: M arrays (seeds, n), bool or shares in [0, 1]; the number of seeds may differ.
        drawn: Of each method, `draws_variance`; 0 when left out.

    Returns:
        (M, M) float64.

    Example:
        >>> a, b = np.zeros((1, 100), bool), np.zeros((1, 100), bool)
        >>> a[0, :16] = True
        >>> p = paired_p([a, b])  # z = 16 / sqrt(16)
        >>> bool(abs(p[0, 1] - 2 * special.ndtr(-4)) < 1e-4)
        True
    """
    if not predictions:
        return np.ones((0, 0))
    share = np.stack([each.mean(0) for each in predictions])
    n = share.shape[1]
    products = share @ share.T
    squares = np.diag(products)
    images = np.maximum(squares[:, None] + squares[None] - 2 * products, 0) / n**2  # under no difference
    accuracy = [each.mean(1) for each in predictions]
    seeds = np.array([a.var(ddof=1) / len(a) if len(a) > 1 else 0.0 for a in accuracy])
    freedom = np.array([max(len(a) - 1, 1) for a in accuracy])
    draws = np.zeros(len(share)) if drawn is None else np.asarray(drawn)
    variance = images + (seeds + draws)[:, None] + (seeds + draws)[None]
    spread = images**2 / max(n - 1, 1) + (seeds**2 / freedom)[:, None] + (seeds**2 / freedom)[None]
    difference = np.abs(share.mean(1)[:, None] - share.mean(1)[None])
    tiny = variance < 1e-18  # the same predictions
    t = difference / np.sqrt(np.where(tiny, 1.0, variance))
    p = 2 * special.stdtr(np.where(tiny, 1.0, variance**2 / np.where(spread == 0, 1.0, spread)), -t)
    return np.where(tiny & (difference < 1e-12), 1.0, p)


def draws_variance(rows: Sequence[Row], predictions: Predictions) -> float:
    """Variance of a mean share that is due to draws (episodes, labels): what a row's interval holds beyond images.

    Intervals with draws are sqrt(r^2 + i^2) wide (`repeated_metric`), i being Z standard errors over the images.

    Args:
        rows: One a seed.
        predictions: Their `correctness`, (seeds, n).
    """
    n = predictions.shape[1]
    if predictions.dtype == bool or n < 2 or rows[0]["task"] in RESAMPLED:
        return 0.0
    metrics = [row["metrics"][row["headline"]] for row in rows]
    halves = np.array([metric["high"] - metric["low"] for metric in metrics]) / 200
    return float(np.maximum((halves / Z) ** 2 - predictions.var(axis=1, ddof=1) / n, 0).mean())


def interval_p(means: Sequence[float], halves: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Two-sided p-values for all pairs of M means whose 95 % intervals are independent: (M, M) float64."""
    m, deviation = np.asarray(means, float), np.asarray(halves, float) / Z
    error = np.hypot(deviation[:, None], deviation[None])
    difference = np.abs(m[:, None] - m[None])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 1.0, 2 * special.ndtr(-difference / error))


def holm(p: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Holm's adjusted p-values (Scandinavian Journal of Statistics 6, 1979): (K,) float64.

    Example:
        >>> holm(np.array([0.04, 0.01, 0.03])).tolist()
        [0.06, 0.03, 0.06]
    """
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted

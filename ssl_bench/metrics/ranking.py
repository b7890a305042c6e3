"""How well scores rank images by a label: average precision, as it is counted in several places."""

from __future__ import annotations

from typing import Any

import numpy as np

from ssl_bench.metrics.intervals import jackknife_groups, jackknife_metric
from ssl_bench.metrics.metric import Metric

Array = np.ndarray[Any, np.dtype[Any]]

RULES = ("step", "voc2007", "envelope")


def average_precision(scores: Array, true: Array, rule: str = "step") -> float:
    """Area under precision against recall of one label.

    Args:
        scores: (N,) float.
        true: (N,) bool, one at least.
        rule: "step" sums precision times the step of recall, equal scores together (scikit-learn, torchmetrics);
            "voc2007" is the mean over recalls of 0, 0.1 to 1 of the best precision from there on; "envelope" the area
            under that best precision (VOC from 2010), both with equal scores in the order of the images.

    Example:
        >>> scores, true = np.array([0.9, 0.8, 0.3, 0.2]), np.array([True, False, True, False])
        >>> [round(average_precision(scores, true, rule), 6) for rule in RULES]
        [0.833333, 0.848485, 0.833333]
    """
    order = np.argsort(-scores, kind="stable")
    hits = true[order]
    right = np.cumsum(hits)
    if rule == "step":
        # torchmetrics' function asks for tensors and checks them each time; the jackknife calls this for every image.
        ordered = scores[order]
        last = np.searchsorted(-ordered, -ordered, side="right")  # how many have at least this score
        return float((right[last - 1] / last)[hits].mean())
    precision = right / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "envelope":
        return float(best[hits].mean())
    recall = right / right[-1]
    places = np.searchsorted(recall, np.arange(11) / 10 - 1e-12)
    return float(np.append(best, 0.0)[places].mean())


def mean_average_precision(scores: Array, true: Array, rule: str = "step") -> float:
    """The mean over labels that some image has, as VOC and COCO count it; torchmetrics counts the others as 0.

    Args:
        scores: (N, L) float.
        true: (N, L) bool.
        rule: As of `average_precision`.
    """
    there = np.flatnonzero(true.any(0))
    return float(np.mean([average_precision(scores[:, k], true[:, k], rule) for k in there])) if len(there) else 0.0


def map_metrics(scores: Array, true: Array, names: tuple[str, ...], rule: str = "step") -> dict[str, Metric]:
    """The names "map" and "ap/NAME" of each label that some image has, in percent, with intervals of the jackknife."""
    groups, n = jackknife_groups(len(scores)).numpy(), len(scores)

    def metric(columns: Array) -> Metric:
        s, t = scores[:, columns], true[:, columns]
        rest = [groups != g for g in range(groups.max() + 1)]
        left = [100 * mean_average_precision(s[kept], t[kept], rule) for kept in rest if t[kept].any()]
        return jackknife_metric(100 * mean_average_precision(s, t, rule), left, n, (0.0, 100.0))

    there = np.flatnonzero(true.any(0))
    each = {f"ap/{names[k]}": metric(np.array([k])) for k in there}
    return {"map": metric(np.arange(true.shape[1])), **each}


def map_contributions(scores: Array, true: Array, rule: str = "step") -> Array:
    """What each image adds to the mean average precision; see `detection.contributions`: (N, 1) float64."""
    n, there = len(scores), np.flatnonzero(true.any(0))
    value, without = mean_average_precision(scores, true, rule), np.zeros(n)
    for i in range(n):
        kept = np.arange(n) != i
        without[i] = mean_average_precision(scores[kept][:, there], true[kept][:, there], rule)
    pseudo = n * value - (n - 1) * without
    return (pseudo + value - pseudo.mean())[:, None]

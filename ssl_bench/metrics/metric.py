"""A number with its 95 % interval, and the accuracy of predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_bench.metrics.quantiles import Z


@dataclass(frozen=True)
class Metric:
    """One number with its 95 % interval.

    Attributes:
        value: The number, in percent for accuracies.
        n: Test images it was measured on.
        low: Lower end of the interval over test images (and draws, where there are several), in the unit of `value`.
        high: Upper end.
    """

    value: float
    n: int
    low: float
    high: float


def true_class_rank(scores: Tensor, labels: Tensor) -> Tensor:
    """Place of the true class when classes are ordered by falling score, equal scores in the order of the classes.

    Args:
        scores: (N, C) float.
        labels: (N,) int64.

    Returns:
        (N,) int64; 0 is a right prediction, below 5 a right top-5.

    Example:
        >>> true_class_rank(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0]]), torch.tensor([2, 1]))
        tensor([1, 1])
    """
    # torchmetrics' accuracies are one number; intervals, paired tests and every top-k need each image's rank.
    own = scores.gather(1, labels[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(dim=1)


def accuracies(rank: Tensor) -> dict[str, Metric]:
    """``top1`` and ``top5`` of the places of the true class.

    Args:
        rank: (N,) int64, of ``true_class_rank``.

    Example:
        >>> {name: metric.value for name, metric in accuracies(torch.tensor([0, 1, 4, 5])).items()}
        {'top1': 25.0, 'top5': 75.0}
    """
    return {name: accuracy_metric((rank < k).numpy()) for name, k in (("top1", 1), ("top5", 5))}


def accuracy_metric(correct: np.ndarray[Any, np.dtype[np.bool_]] | Tensor) -> Metric:
    """Accuracy in percent with the 95 % Wilson score interval over test images.

    The interval covers the draw of test images only, not the seed of training.

    Args:
        correct: (N,) bool of NumPy or torch, N >= 1.

    Example:
        >>> metric = accuracy_metric(np.array([True] * 8 + [False] * 2))
        >>> f"{metric.value:.1f} % of {metric.n}, 95 % interval {metric.low:.1f} to {metric.high:.1f}"
        '80.0 % of 10, 95 % interval 49.0 to 94.3'
    """
    correct = np.asarray(correct.cpu() if isinstance(correct, Tensor) else correct)
    n = len(correct)
    p = float(np.mean(correct))
    z = Z
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))  # p = 0 or 1 exactly, despite rounding
    return Metric(100 * p, n, 100 * low, 100 * high)

"""Numbers that are no mean over test images but ratios of sums over them, such as mIoU; without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Parts = np.ndarray[Any, np.dtype[Any]]  # (n, C, 2): numerator and denominator of every image in each of C ratios

RESAMPLES = 1000
_AT_ONCE = 2**22  # weights of resampled images: 32 MiB


def ratio(parts: Parts) -> float:
    """The mean over ratios of numerators over denominators, each summed over images; 0/0 is left out, 0 without any.

    Example:
        >>> ratio(np.array([[[1, 2], [0, 0]], [[2, 4], [0, 0]]]))
        0.5
    """
    return float(_ratios(parts.sum(0, dtype=np.float64)[None])[0])


def contributions(parts: Parts) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One number an image, whose mean is the ratio and whose spread is that of the ratio over draws of images.

    The infinitesimal jackknife (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 22): the ratio
    plus n times its derivative by the weight of the image. Means and paired tests then do as for shares of right
    images, though single numbers may lie outside [0, 1].

    Returns:
        (n,) float64.

    Example:
        >>> contributions(np.array([[[1, 2]], [[2, 2]]])).tolist()
        [0.5, 1.0]
    """
    n, total = len(parts), parts.sum(0, dtype=np.float64)
    there = total[:, 1] > 0
    if not there.any():
        return np.zeros(n)
    value = total[there, 0] / total[there, 1]
    shift = (parts[:, there, 0] - value * parts[:, there, 1]) * (n / total[there, 1])
    return (value + shift).mean(1)


def bootstrap(parts: Parts, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The ratio of each of `RESAMPLES` draws of n images with replacement: (RESAMPLES,) float64."""
    return np.concatenate(list(_resampled(parts.astype(np.float64), np.random.default_rng(seed))))


def _resampled(parts: Parts, random: np.random.Generator) -> Iterator[np.ndarray[Any, np.dtype[np.float64]]]:
    n = len(parts)
    step = max(1, min(RESAMPLES, _AT_ONCE // n))
    for start in range(0, RESAMPLES, step):
        weights = random.multinomial(n, np.full(n, 1 / n), size=min(step, RESAMPLES - start))
        yield _ratios((weights.astype(np.float64) @ parts.reshape(n, -1)).reshape(len(weights), -1, 2))


def _ratios(totals: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(R, C, 2) sums to (R,) means over those of the C ratios that are defined."""
    there = totals[..., 1] > 0
    each = np.where(there, totals[..., 0] / np.where(there, totals[..., 1], 1), 0)
    return each.sum(1) / np.maximum(there.sum(1), 1)

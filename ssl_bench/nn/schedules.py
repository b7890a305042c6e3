"""Schedules of one number over a training."""

from __future__ import annotations

import math


def cosine(progress: float, start: float, end: float) -> float:
    """Half a cosine from ``start`` (progress 0) to ``end`` (progress 1).

    Example:
        >>> cosine(0.5, 0.99, 1.0)
        0.995
    """
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine(epoch: float, peak: float, warmup: float, epochs: float, end: float = 0.0) -> float:
    """Learning rate at a fractional epoch: linear from 0 over ``warmup`` epochs, then half a cosine to ``end``.

    Example:
        >>> [round(warmup_cosine(e, 2.4e-3, 40, 800), 8) for e in (0, 0.5, 20, 40, 420)]
        [0.0, 3e-05, 0.0012, 0.0024, 0.0012]
    """
    if epoch < warmup:
        return peak * epoch / warmup
    return cosine((epoch - warmup) / (epochs - warmup), peak, end) if epochs > warmup else peak

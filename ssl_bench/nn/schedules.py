"""Schedules of one number over a training."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["step", "step_inclusive", "step_late", "epoch"]


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


def learning_rate(
    step: int,
    steps: int,
    *,
    peak: float,
    epochs: float,
    warmup: float,
    end: float = 0.0,
    start: float = 0.0,
    schedule: Schedule = "step",
) -> float:
    """Learning rate of one optimiser step, by one of the schedules that the official scripts have.

    Args:
        step: Steps done before this one, 0 to steps - 1.
        steps: Of the whole training.
        peak: Highest rate.
        epochs: Length of the training.
        warmup: Epochs of linear rise from ``start`` to ``peak``.
        end: Rate at the end.
        start: Rate of the first step, where there is a warm-up.
        schedule: "step": the first step after the warm-up has the peak (MAE, MoCo v3). "step_inclusive": the last step
            of the warm-up has it as well, as numpy.linspace gives it (DINO, iBOT, BEiT, EVA). "step_late": as MoBY
            steps timm's scheduler, after each step with that step's number: the second step has the first one's rate
            again, and the cosine counts from the first step, not from the end of the warm-up. "epoch": the same with
            one rate an epoch (DeiT's ``main.py``).

    Example:
        DINO at 4 epochs of 3 steps, MoBY at 60 epochs of 50, and DeiT's epochs 0, 1, 2, 6 and 299:

        >>> [round(learning_rate(i, 12, peak=2e-3, end=1e-6, epochs=4, warmup=1, schedule="step_inclusive"), 8)
        ...  for i in range(5)]
        [0.0, 0.001, 0.002, 0.002, 0.00193972]
        >>> moby = dict(peak=1e-3, end=5e-6, start=5e-7, epochs=60, warmup=1, schedule="step_late")
        >>> [round(learning_rate(i, 3000, **moby), 10) for i in (0, 1, 26, 51, 1501)]
        [5e-07, 5e-07, 0.00050025, 0.0009993182, 0.0005025]
        >>> deit = dict(peak=1e-3, end=1e-5, start=1e-6, epochs=300, warmup=5, schedule="epoch")
        >>> [round(learning_rate(i, 300, **deit), 8) for i in (0, 1, 2, 6, 299)]
        [1e-06, 1e-06, 0.0002008, 0.00099932, 1.011e-05]
    """
    warmup = min(warmup, epochs)
    if schedule in ("step_late", "epoch"):
        epoch = max(0, step - 1) * epochs / steps if schedule == "step_late" else max(0, int(step * epochs / steps) - 1)
        if epoch < warmup:
            return start + (peak - start) * epoch / warmup
        return cosine(epoch / epochs, peak, end)
    if schedule == "step_inclusive":
        rising = round(warmup * steps / epochs)
        if step < rising:
            return start + (peak - start) * step / max(1, rising - 1)
        return cosine((step - rising) / (steps - rising), peak, end)
    at = step * epochs / steps  # in this order, whole epochs come out whole
    if at < warmup:
        return start + (peak - start) * at / warmup
    return warmup_cosine(at, peak, warmup, epochs, end)

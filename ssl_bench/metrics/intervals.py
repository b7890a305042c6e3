"""95 % intervals for numbers that are not the share of right test images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ssl_bench.metrics.metric import Metric
from ssl_bench.metrics.quantiles import Z
from ssl_bench.metrics.ratios import Parts, bootstrap, ratio

LARGEST = 1e9  # of a metric, either way: what a row holds (row.schema.json)
GROUPS = 20  # of the jackknife: enough for a t quantile of 2.09, few enough to compute any statistic that often


def jackknife_groups(n: int, seed: int = 0) -> Tensor:
    """A random group for each of n images: (n,) int64 in [0, min(GROUPS, n)), of equal sizes but for one.

    Example:
        >>> torch.bincount(jackknife_groups(45)).tolist()
        [3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    """
    order = np.random.default_rng(seed).permutation(n)
    return torch.from_numpy(order % min(GROUPS, n))


def jackknife_metric(value: float, left_out: Sequence[float], n: int, bounds: tuple[float, float]) -> Metric:
    """A statistic of test images with the interval of the delete-a-group jackknife.

    value ± t sqrt((G - 1) / G sum_g (value_g - mean)^2), with value_g the statistic without group g and t the quantile
    at G - 1 degrees of freedom (Shao and Tu, The Jackknife and Bootstrap, 1995, section 2.3). Unlike the bootstrap it
    never sees an image twice, which would bias everything that looks at pairs (ARI, uniformity) or at ranks.

    Args:
        value: The statistic of all n test images.
        left_out: The statistic without each group; with fewer than two, the interval is all of `bounds`.
        n: Test images.
        bounds: Smallest and largest possible value; an infinite one stands for the largest number that a row holds.

    Example:
        >>> jackknife_metric(2.0, [1.9, 2.0, 2.1], 30, (0.0, math.inf))
        Metric(value=2.0, n=30, low=1.50317..., high=2.49682...)
    """
    groups, bounds = len(left_out), (max(bounds[0], -LARGEST), min(bounds[1], LARGEST))
    if groups < 2:
        return Metric(value, n, *bounds)
    spread = math.sqrt((groups - 1) * float(np.var(left_out)))
    half = float(stats.t.ppf(0.975, groups - 1)) * spread
    low, high = max(bounds[0], value - half), min(bounds[1], value + half)
    return Metric(value, n, min(value, low), max(value, high))


def mean_metric(values: Tensor, most: float = 100.0, least: float = 0.0) -> Metric:
    """The mean of one number a test image, in [`least`, `most`], with its interval.

    Args:
        values: (N,) float.
        most: The largest possible value.
        least: The smallest possible value.

    Example:
        >>> mean_metric(torch.tensor([50.0, 60.0, 70.0]))
        Metric(value=60.0, n=3, low=48.6841..., high=71.3158...)
    """
    n, value = len(values), float(values.double().mean())
    if n < 2:
        return Metric(value, n, least, most)
    half = Z * float(values.double().std()) / math.sqrt(n)
    return Metric(value, n, max(least, value - half), min(most, value + half))


def ratio_metric(parts: Parts) -> Metric:
    """A ratio of sums over test images, or the mean of several, in percent, with its bootstrap interval over images.

    Args:
        parts: As of `ratios.ratio`.

    Example:
        >>> ratio_metric(np.array([[[1, 2]], [[1, 2]], [[1, 2]]]))
        Metric(value=50.0, n=3, low=50.0, high=50.0)
    """
    value = 100 * ratio(parts)
    if len(parts) < 2:
        return Metric(value, len(parts), 0.0, 100.0)
    low, high = (100 * float(each) for each in np.quantile(bootstrap(parts), (0.025, 0.975)))
    return Metric(value, len(parts), min(value, low), max(value, high))


def repeated_metric(per_repeat: Tensor, per_image: Tensor) -> Metric:
    """The mean accuracy over repeats (episodes, draws of labels) that share their test images.

    The half-width is sqrt(r^2 + i^2): r of Student's t over repeats, i of the mean over test images. Either alone would
    hide a source of chance; together they are slightly wide, since the rest that is due to neither is in both.

    Args:
        per_repeat: (R,) float, accuracy of each repeat, percent.
        per_image: (N,) float, how often each test image was right, percent.

    Example:
        >>> repeated_metric(torch.tensor([50.0, 52.0]), torch.tensor([100.0, 50.0, 0.0, 54.0])).value
        51.0
    """
    over_images = mean_metric(per_image)
    repeats, value = len(per_repeat), float(per_repeat.double().mean())
    if repeats < 2 or over_images.n < 2:
        return Metric(value, over_images.n, min(value, over_images.low), max(value, over_images.high))
    quantile = float(stats.t.ppf(0.975, repeats - 1))
    r = quantile * float(per_repeat.double().std()) / math.sqrt(repeats)
    i = Z * float(per_image.double().std()) / math.sqrt(over_images.n)
    half = math.hypot(r, i)
    return Metric(value, over_images.n, max(0.0, value - half), min(100.0, value + half))

"""The blurs among the corruptions: out of focus, behind frosted glass, in motion, approaching, and a plain Gaussian.

After hendrycks/robustness (Apache-2.0), without its OpenCV, scikit-image and ImageMagick.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

Pixels = np.ndarray[Any, np.dtype[np.float64]]  # (H, W, 3) in [0, 1]


def gaussian_blur(x: Pixels, sigma: float, random: np.random.Generator) -> Pixels:
    blurred: Pixels = ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=4)
    return blurred


def defocus_blur(x: Pixels, strength: tuple[float, float], random: np.random.Generator) -> Pixels:
    kernel = disk(*strength)
    reach = len(kernel) // 2
    wide = pad(torch.from_numpy(x).float().permute(2, 0, 1)[:, None], [reach] * 4, "reflect")
    return conv2d(wide, kernel[None, None])[:, 0].permute(1, 2, 0).double().numpy()


@cache
def disk(radius: float, smoothing: float) -> Tensor:
    """An even disk, smoothed by a Gaussian that is cut to 3 pixels (5 above radius 8): float32 (K, K)."""
    reach, half = (8, 1) if radius <= 8 else (int(radius), 2)
    at = np.arange(-reach, reach + 1)
    even = (at[:, None] ** 2 + at**2 <= radius**2).astype(float)
    taps = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * smoothing**2))
    smooth = even / even.sum()
    for axis in (0, 1):
        smooth = ndimage.correlate1d(smooth, taps / taps.sum(), axis, mode="mirror")
    return torch.from_numpy(smooth).float()


def glass_blur(x: Pixels, strength: tuple[float, int, int], random: np.random.Generator) -> Pixels:
    """Pixels replaced by near ones between two Gaussian blurs.

    From the last pixel to the first, each takes the value that stands up to `reach` pixels before it or `reach` - 1
    after it. The authors mean to swap the two, but `x[a], x[b] = x[b], x[a]` on rows of a numpy array copies one: the
    published sets have lost pixels, and so do ours.
    """
    sigma, reach, rounds = strength
    height, width = x.shape[:2]
    rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
    right, down = random.integers(-reach, reach, (2, rounds, len(rows), len(columns)))
    # A list, because single entries of one are read and written faster than those of an array.
    source = list(range(height * width))
    places = [row * width + column for row in rows for column in columns] * rounds
    for place, jump in zip(places, (down * width + right).ravel().tolist(), strict=True):
        source[place] = source[place + jump]
    levels = (255 * gaussian_blur(x, sigma, random)).astype(np.uint8)
    return gaussian_blur(levels.reshape(-1, 3)[source].reshape(x.shape) / 255, sigma, random)


def motion_blur(x: Pixels, strength: tuple[int, float], random: np.random.Generator) -> Any:
    return motion(x, *strength, random.uniform(-45, 45))


def motion(x: Pixels, radius: int, sigma: float, angle: float) -> Any:
    """Half a Gaussian along a line, as ImageMagick's MotionBlurImage has it.

    Each pixel is a weighted mean of itself and of those 1 to 2 `radius` pixels ahead of it, without interpolation; the
    edge is repeated outside. The result is rounded: the authors fetch it from ImageMagick in a file.

    Args:
        x: (H, W, C) in [0, 1].
        radius: Half the length, pixels.
        sigma: Standard deviation, pixels.
        angle: Of the direction ahead, degrees from right to down.

    Returns:
        uint8 (H, W, C).
    """
    height, width = x.shape[:2]
    steps, turn = np.arange(2 * radius + 1), math.radians(angle)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    down, right = (2 * radius + np.ceil(steps * part - 0.5).astype(int) for part in (math.sin(turn), math.cos(turn)))
    wide = np.pad(x, ((2 * radius, 2 * radius), (2 * radius, 2 * radius), (0, 0)), "edge")
    blurred = np.zeros_like(x)
    for weight, top, left in zip(weights / weights.sum(), down.tolist(), right.tolist(), strict=True):
        blurred += weight * wide[top : top + height, left : left + width]
    return np.rint(255 * blurred).astype(np.uint8)


def zoom_blur(x: Pixels, strength: tuple[float, float], random: np.random.Generator) -> Pixels:
    """The mean of the image and of itself seen closer and closer."""
    factors = np.arange(1, *strength)
    image = torch.from_numpy(x).permute(2, 0, 1)
    total = image + sum(zoomed(image, float(factor)) for factor in factors)
    return (total / (len(factors) + 1)).permute(1, 2, 0).numpy()


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of (C, H, W), enlarged bilinearly to the same size: the corners of its pixels stay where they are."""
    sides = x.shape[1:]
    kept = [math.ceil(side / factor) for side in sides]
    x = _middle(x, kept)
    size = [round(side * factor) for side in kept]
    return _middle(interpolate(x[None], size, mode="bilinear", align_corners=True)[0], list(sides))


def _middle(x: Tensor, size: list[int]) -> Tensor:
    top, left = ((x.shape[1 + axis] - size[axis]) // 2 for axis in (0, 1))
    return x[:, top : top + size[0], left : left + size[1]]

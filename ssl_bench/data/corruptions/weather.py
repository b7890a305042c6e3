"""The weather among the corruptions: snow, fog, and the brightness of the day.

After hendrycks/robustness (Apache-2.0), without its OpenCV, scikit-image and ImageMagick.
"""

from __future__ import annotations

import numpy as np
import torch

from ssl_bench.data.corruptions.blurs import Pixels, motion, zoomed

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in OpenCV's grey


def snow(x: Pixels, strength: tuple[float, ...], random: np.random.Generator) -> Pixels:
    """Blurred streaks of thresholded noise, twice, the second time turned by 180 degrees; the scene is whitened."""
    mean, spread, zoom, threshold, radius, sigma, clarity = strength
    noise = torch.from_numpy(random.normal(mean, spread, x.shape[:2]))
    flakes = zoomed(noise[None], zoom).permute(1, 2, 0).numpy()
    flakes = np.where(flakes < threshold, 0, np.minimum(flakes, 1))
    flakes = (255 * flakes).astype(np.uint8) / 255  # ImageMagick reads and writes 256 levels
    flakes = motion(flakes, int(radius), sigma, random.uniform(-135, -45)) / 255
    white = np.maximum(x, 1.5 * (x * LUMA).sum(2, keepdims=True) + 0.5)
    return clarity * x + (1 - clarity) * white + flakes + np.rot90(flakes, 2)


def fog(x: Pixels, strength: tuple[float, float], random: np.random.Generator) -> Pixels:
    thickness, decay = strength
    height, width = x.shape[:2]
    clouds = plasma(1 << (max(height, width) - 1).bit_length(), decay, random)[:height, :width, None]
    return (x + thickness * clouds) * x.max() / (x.max() + thickness)


def plasma(size: int, decay: float, random: np.random.Generator) -> Pixels:
    """Clouds by the diamond-square algorithm on a torus: (size, size) in [0, 1], size a power of two.

    Each halving of the grid adds noise that is smaller by decay^2 (the authors scale it by a number and draw it from an
    interval of that number).
    """
    z, step, noise = np.zeros((size, size)), size, 1.0

    def rough(total: Pixels) -> Pixels:
        return total / 4 + random.uniform(-noise, noise, total.shape)

    while step >= 2:
        half = step // 2
        corners = z[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        z[half::step, half::step] = centres = rough(pairs + np.roll(pairs, -1, 1))
        beside, below = corners + np.roll(corners, -1, 1), corners + np.roll(corners, -1, 0)
        z[::step, half::step] = rough(beside + centres + np.roll(centres, 1, 0))
        z[half::step, ::step] = rough(below + centres + np.roll(centres, 1, 1))
        step, noise = half, noise / decay**2
    z -= z.min()
    return z / z.max()


def brightness(x: Pixels, added: float, random: np.random.Generator) -> Pixels:
    """HSV with another value: the channels keep their ratios; black becomes grey."""
    value = x.max(2, keepdims=True)
    new = np.minimum(value + added, 1)
    return np.where(value > 0, x * new / np.maximum(value, 1e-9), new)

"""Common corruptions of images at five severities: Hendrycks and Dietterich (ICLR 2019, arXiv:1903.12261).

The strengths are the ones that made the three published sets (`make_cifar_c.py`, `make_imagenet_64_c.py` and
`make_imagenet_c.py` of hendrycks/robustness, Apache-2.0): CIFAR-10-C at 32 px, ImageNet-64-C and ImageNet-C at 224 px.
Ten of the paper's fifteen corruptions are here and three of its four extra ones. Left out, because they need
photographs or other libraries' operations: frost; motion blur and snow (ImageMagick); elastic and spatter (OpenCV);
glass blur, a loop over pixels.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

Pixels = np.ndarray[Any, np.dtype[np.float64]]  # (H, W, 3) in [0, 1]

SMALLEST = 9  # pixels a side: defocus reflects 8 of them at the border

# Side in pixels of a published set -> corruption -> what severities 1 to 5 mean.
STRENGTHS: dict[int, dict[str, list[Any]]] = {
    32: {
        "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.10],  # standard deviation
        "shot_noise": [500, 250, 100, 75, 50],  # photons at full brightness
        "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],  # share of values
        "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],  # radius, smoothing of the disk
        "zoom_blur": [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)],  # end, step
        "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],  # thickness, decay of the detail
        "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],  # added to the value of HSV
        "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],  # factor
        "pixelate": [0.95, 0.9, 0.85, 0.75, 0.65],  # size
        "jpeg_compression": [80, 65, 58, 50, 40],  # quality
        "speckle_noise": [0.06, 0.1, 0.12, 0.16, 0.2],  # standard deviation at full brightness
        "gaussian_blur": [0.4, 0.6, 0.7, 0.8, 1],  # standard deviation, pixels
        "saturate": [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],  # factor and offset of the saturation of HSV
    },
    64: {
        "gaussian_noise": [0.04, 0.08, 0.12, 0.15, 0.18],
        "shot_noise": [250, 100, 50, 30, 15],
        "impulse_noise": [0.01, 0.02, 0.05, 0.08, 0.14],
        "defocus_blur": [(0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)],
        "zoom_blur": [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)],
        "fog": [(0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)],
        "brightness": [0.1, 0.2, 0.3, 0.4, 0.5],
        "contrast": [0.4, 0.3, 0.2, 0.1, 0.05],
        "pixelate": [0.9, 0.8, 0.7, 0.6, 0.5],
        "jpeg_compression": [65, 58, 50, 40, 25],
        "speckle_noise": [0.15, 0.2, 0.25, 0.3, 0.35],
        "gaussian_blur": [0.5, 0.75, 1, 1.25, 1.5],
        "saturate": [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)],
    },
    224: {
        "gaussian_noise": [0.08, 0.12, 0.18, 0.26, 0.38],
        "shot_noise": [60, 25, 12, 5, 3],
        "impulse_noise": [0.03, 0.06, 0.09, 0.17, 0.27],
        "defocus_blur": [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
        "zoom_blur": [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
        "fog": [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
        "brightness": [0.1, 0.2, 0.3, 0.4, 0.5],
        "contrast": [0.4, 0.3, 0.2, 0.1, 0.05],
        "pixelate": [0.6, 0.5, 0.4, 0.3, 0.25],
        "jpeg_compression": [25, 18, 15, 10, 7],
        "speckle_noise": [0.15, 0.2, 0.35, 0.45, 0.6],
        "gaussian_blur": [1, 2, 3, 4, 6],
        "saturate": [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)],
    },
}


def corrupt(image: Tensor, name: str, severity: int, seed: tuple[int, ...]) -> Tensor:
    """One image under one corruption. Values are cut to whole numbers, not rounded, as in the published sets.

    Args:
        image: uint8 (3, H, W), `SMALLEST` px or more a side.
        name: Of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: Draws the noise, together with the name and the severity.

    Returns:
        uint8 (3, H, W).

    Example:
        >>> gray = torch.full((3, 32, 32), 100, dtype=torch.uint8)
        >>> corrupt(gray, "brightness", 5, (0,)).unique().tolist()  # 100 + 0.3 x 255, cut
        [176]
    """
    x = image.permute(1, 2, 0).numpy() / 255.0
    strength = STRENGTHS[nearest_set(min(x.shape[:2]))][name][severity - 1]
    y = CORRUPTIONS[name](x, strength, np.random.default_rng((*seed, zlib.crc32(name.encode()), severity)))
    pixels = y if y.dtype == np.uint8 else (255 * np.clip(y, 0, 1)).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def nearest_set(side: int) -> int:
    """The published set whose image size is nearest, by ratio.

    Example:
        >>> [nearest_set(side) for side in (28, 32, 48, 96, 128, 224)]
        [32, 32, 64, 64, 224, 224]
    """
    return min(STRENGTHS, key=lambda size: abs(math.log(size / side)))


# The corruptions: (H, W, 3) in [0, 1] to the same, not yet clipped; or to uint8 ---------------------------------------


def gaussian_noise(x: Pixels, deviation: float, random: np.random.Generator) -> Pixels:
    return x + random.normal(scale=deviation, size=x.shape)


def shot_noise(x: Pixels, photons: float, random: np.random.Generator) -> Pixels:
    return random.poisson(x * photons) / photons


def impulse_noise(x: Pixels, share: float, random: np.random.Generator) -> Pixels:
    """Salt and pepper, each value of a pixel on its own."""
    hit, salt = random.random(x.shape) < share, random.random(x.shape) < 0.5
    return np.where(hit, salt, x)


def speckle_noise(x: Pixels, deviation: float, random: np.random.Generator) -> Pixels:
    return x + x * random.normal(scale=deviation, size=x.shape)


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


def zoom_blur(x: Pixels, strength: tuple[float, float], random: np.random.Generator) -> Pixels:
    """The mean of the image and of itself seen closer and closer."""
    factors = np.arange(1, *strength)
    image = torch.from_numpy(x).permute(2, 0, 1)
    total = image + sum(zoomed(image, float(factor)) for factor in factors)
    return (total / (len(factors) + 1)).permute(1, 2, 0).numpy()


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of (3, H, W), enlarged bilinearly to the same size: the corners of its pixels stay where they are."""
    sides = x.shape[1:]
    kept = [math.ceil(side / factor) for side in sides]
    x = _middle(x, kept)
    size = [round(side * factor) for side in kept]
    return _middle(interpolate(x[None], size, mode="bilinear", align_corners=True)[0], list(sides))


def _middle(x: Tensor, size: list[int]) -> Tensor:
    top, left = ((x.shape[1 + axis] - size[axis]) // 2 for axis in (0, 1))
    return x[:, top : top + size[0], left : left + size[1]]


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
    """HSV with another value: the channels keep their ratios; black becomes gray."""
    value = x.max(2, keepdims=True)
    new = np.minimum(value + added, 1)
    return np.where(value > 0, x * new / np.maximum(value, 1e-9), new)


def saturate(x: Pixels, strength: tuple[float, float], random: np.random.Generator) -> Pixels:
    """HSV with another saturation: the distances from the largest channel grow; gray has hue 0, which is red."""
    factor, offset = strength
    value = x.max(2, keepdims=True)
    chroma = value - x.min(2, keepdims=True)
    old = chroma / np.maximum(value, 1e-9)
    shape = np.where(chroma > 0, (value - x) / np.maximum(chroma, 1e-9), np.array([0.0, 1.0, 1.0]))
    return value * (1 - shape * np.clip(old * factor + offset, 0, 1))


def contrast(x: Pixels, factor: float, random: np.random.Generator) -> Pixels:
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * factor + mean


def pixelate(x: Pixels, size: float, random: np.random.Generator) -> Any:
    image = _to_pil(x)
    small = image.resize((int(image.width * size), int(image.height * size)), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.BOX))


def jpeg_compression(x: Pixels, quality: int, random: np.random.Generator) -> Any:
    file = io.BytesIO()
    _to_pil(x).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _to_pil(x: Pixels) -> Image.Image:
    return Image.fromarray((255 * x).round().astype(np.uint8))


Corruption = Callable[[Pixels, Any, np.random.Generator], Any]
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "zoom_blur": zoom_blur,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur,
    "saturate": saturate,
}

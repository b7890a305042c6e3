"""Common corruptions of images at five severities: Hendrycks and Dietterich (ICLR 2019, arXiv:1903.12261).

After the scripts that made the three published sets, CIFAR-10-C at 32 px, ImageNet-64-C and ImageNet-C at 224 px
(hendrycks/robustness, Apache-2.0), with their strengths. Fourteen of the paper's fifteen corruptions (frost needs the
authors' photographs) and three of its four extra ones (not spatter). The draws are our own; what OpenCV, scikit-image
and ImageMagick do there is written anew.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from scipy.fft import dct, dctn, idctn
from torch import Tensor

from ssl_bench.data.corruptions.blurs import Pixels, defocus_blur, gaussian_blur, glass_blur, motion_blur, zoom_blur
from ssl_bench.data.corruptions.strengths import STRENGTHS
from ssl_bench.data.corruptions.weather import brightness, fog, snow

SMALLEST = 9  # pixels a side: defocus reflects 8 of them at the border


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


def elastic_transform(x: Pixels, strength: tuple[float, float, float], random: np.random.Generator) -> Pixels:
    """An affine map that moves three points at random, then displacements of the pixels that vary smoothly."""
    shift, smoothing, affine = strength
    height, width = x.shape[:2]
    rows, columns = np.indices((height, width))
    # Where each pixel comes from: the map that brings the moved points back. OpenCV rounds that to 1/32 px, we do not.
    centre, side = np.array([width // 2, height // 2]), min(height, width) // 3
    points = centre + side * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + random.uniform(-affine, affine, (3, 2))
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points)
    across, down = np.moveaxis(columns[..., None] * back[0] + rows[..., None] * back[1] + back[2], 2, 0)
    x = _sampled(x, down, across, "mirror")
    across, down = (shift * smoothed(random.uniform(-1, 1, (height, width)), smoothing) for _ in range(2))
    return _sampled(x, rows + down, columns + across, "reflect")


def smoothed(field: Pixels, sigma: float) -> Pixels:
    """`ndimage.gaussian_filter` of (H, W), cut at 3 sigma and reflected, by cosine transforms.

    At 224 px sigma goes up to 171, and a sum over that many neighbours would take most of the time.
    """
    height, width = (gain(side, sigma) for side in field.shape)
    result: Pixels = idctn(dctn(field) * height[:, None] * width)
    return result


@lru_cache(maxsize=16)
def gain(size: int, sigma: float) -> Pixels:
    """What the filter does to each cosine: (size,), from its answer to an impulse."""
    impulse = np.eye(1, size)[0]
    answer: Pixels = dct(ndimage.gaussian_filter(impulse, sigma, mode="reflect", truncate=3)) / dct(impulse)
    return answer


def _sampled(x: Pixels, rows: Pixels, columns: Pixels, mode: str) -> Pixels:
    channels = [ndimage.map_coordinates(x[..., i], (rows, columns), order=1, mode=mode) for i in range(3)]
    return np.stack(channels, 2)


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
CORRUPTIONS: dict[str, Corruption] = {  # noise, blur, weather, digital; then the extra ones
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur,
    "saturate": saturate,
}

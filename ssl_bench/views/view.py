"""Views: the random crops a method learns from, as data. `views/make.py` has the two ways to draw them.

`make_views` cuts all views of a batch at once on the device that holds it, with an independent draw for every image;
`view_images` cuts those of images of any sizes, for the worker processes of a loader. Both draw from the same
sampler and follow torchvision's per-image transforms in the order of the official self-supervised pipelines:
crop, flip, colour jitter, grayscale, blur, solarise, normalise.

Against those pipelines on 8-bit PIL images, for equal random numbers (`tests/views/test_views.py`): brightness,
contrast, saturation, grayscale and solarisation are equal but for one value in 200, a level off; a crop is rounded
after each of its two passes as PIL's, below 0.1 levels off on average. The hue is turned in float, where PIL's HSV has
8 bits: 0.7 levels a pixel, -0.08 on average. The blur is a true Gaussian, which PIL approximates by three box filters:
below 1 level a pixel.

On one core, against those pipelines on PIL images (`benchmarks/views.py`): `make_views` draws the views of 32 px images
8 to 10 (MAE), 11 to 12 (MoCo v3) and 15 to 17 (DINO) times as fast, `view_images` those of 500 x 375 pixels at 224 px
2.0, 2.1 to 3.3 and 2.2 to 2.7 times. The latter crops with torchvision's 8-bit kernel and colours in float: PIL's hue
costs 6 times as much, its blur 2 to 7 times. torchvision v2 on tensors: 1.9, 0.5 and 0.6 times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torchvision.transforms.v2.functional as tv
from torch import Tensor

from ssl_bench.utils.errors import UserError, unknown

FILTERS = {
    "bilinear": tv.InterpolationMode.BILINEAR,
    "bicubic": tv.InterpolationMode.BICUBIC,
    "lanczos": tv.InterpolationMode.LANCZOS,
}
# How jitter and blur differ from the authors' pipelines on PIL images: for the deviations of a method that has both.
PIL_DIFFERENCES = (
    "hue is turned in float; PIL's HSV has 8 bits (0.7 grey levels a pixel, -0.08 on average)",
    "the blur is a true Gaussian; PIL's is three box filters (below 1 grey level a pixel)",
)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class View:
    """One kind of random crop; torchvision's transform of the same name defines each field.

    Args:
        size: Output side, or height and width, pixels.
        scale: Range of the crop's share of the image area, drawn uniformly.
        ratio: Range of the crop's width / height, drawn log-uniformly.
        interpolation: "bicubic", "bilinear" or "lanczos", antialiased as in PIL.
        flip: Probability of a horizontal flip.
        jitter: ColorJitter strengths of brightness, contrast, saturation and hue (hue at most 0.5).
        jitter_p: Probability of the jitter.
        grayscale: Probability of dropping the colour.
        blur: Probability of a Gaussian blur.
        blur_sigma: Range of its standard deviation, pixels of the output.
        solarize: Probability of inverting the values at or above `solarize_threshold`.
        solarize_threshold: In [0, 1].
        mean: Subtracted per channel, on the scale [0, 1].
        std: Divided by per channel.
        count: How many crops are drawn from this description.
        same: Repeat the draw of the crop before this one (box, flip, colours, blur) at this size: what a tokenizer or
            teacher sees.
        augment: Changes the cropped and flipped image, uint8 (3, H, W), before colours: timm's RandAugment. It may draw
            from the global generators of `random`, NumPy and torch, which are seeded for it. Such views are cut one by
            one, in the loader's worker processes.

    Raises:
        UserError: A field is out of range.
    """

    size: int | tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_p: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    solarize_threshold: float = 128 / 255
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    count: int = 1
    same: bool = False
    augment: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        for name, length in {"scale": 2, "ratio": 2, "jitter": 4, "blur_sigma": 2, "mean": 3, "std": 3}.items():
            value = tuple(getattr(self, name))
            _check(len(value) == length, name, value, f"must have {length} values")
            object.__setattr__(self, name, value)  # a list from a recipe becomes hashable
        if not isinstance(self.size, int):
            height, width = self.size
            object.__setattr__(self, "size", height if height == width else (height, width))
        _check(min(self.sides) >= 1, "size", self.size, "must be at least 1")
        _check(self.count >= 1, "count", self.count, "must be at least 1")
        for name in ("flip", "jitter_p", "grayscale", "blur", "solarize", "solarize_threshold"):
            _check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "must lie in [0, 1]")
        for name in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            _check(0 < low <= high < math.inf, name, (low, high), "must be (low, high) with 0 < low <= high")
        _check(self.scale[1] <= 1, "scale", self.scale, "is a share of the image area: at most 1")
        _check(min(self.jitter) >= 0, "jitter", self.jitter, "must not be negative")
        _check(self.jitter[3] <= 0.5, "jitter", self.jitter, "has a hue strength above 0.5")
        _check(min(self.std) > 0, "std", self.std, "must be positive")
        if self.interpolation not in FILTERS:
            raise unknown("view interpolation", self.interpolation, FILTERS)

    @property
    def sides(self) -> tuple[int, int]:
        """Output height and width, pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


def random_resized_crop(size: int | tuple[int, int], smallest: float = 0.08, **changes: Any) -> View:
    """The crop that most methods start from: bicubic, flipped half of the times.

    Args:
        size: Output side, or height and width, pixels.
        smallest: Least share of the image's area, above 0 and at most 1.
        changes: Other fields of ``View``.
    """
    return View(size, **{"scale": (smallest, 1.0), "interpolation": "bicubic", "flip": 0.5, **changes})


def byol_pair(crop: View) -> list[View]:
    """Two crops as in BYOL (appendix B): the first always blurred, the second seldom, and sometimes solarised.

    Args:
        crop: Its size, scale, interpolation and range of the blur hold for both.
    """
    first = replace(crop, jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grayscale=0.2, blur=1.0)
    return [first, replace(first, blur=0.1, solarize=0.2)]


def describe(views: Sequence[View]) -> str:
    """How many crops of which size, as the tables print it.

    Example:
        >>> describe([View(224), View(224, blur=0.1), View(96, count=10)])
        '2x224 + 10x96'
    """
    sizes = groupby(views, key=lambda view: view.sides)
    names = ((sum(view.count for view in group), h if h == w else f"({h}x{w})") for (h, w), group in sizes)
    return " + ".join(f"{count}x{side}" for count, side in names)


def augmented(views: Sequence[View]) -> bool:
    """Whether a view has an `augment`, so that images must be cut one by one."""
    return any(view.augment is not None for view in views)


def _check(good: bool, name: str, value: object, rule: str) -> None:
    if not good:
        raise UserError(f"view {name}={value} {rule}")

"""Views: the random crops a method learns from, as data, and the two ways to draw them.

`make_views` cuts all views of a batch at once on the device that holds it, with an independent draw for every image;
`view_image` cuts the views of one image of any size, for the worker processes of a loader. Both draw from the same
sampler and follow torchvision's per-image transforms in the order of the official self-supervised pipelines:
crop, flip, colour jitter, grayscale, blur, solarise, normalise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from typing import NamedTuple

import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor
from torch.nn.functional import pad

from ssl_bench.errors import UserError, unknown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GRAY = (0.2989, 0.587, 0.114)  # torchvision's rounding of the ITU-R 601 luma weights
FILTERS = {"bilinear": tv.InterpolationMode.BILINEAR, "bicubic": tv.InterpolationMode.BICUBIC}
TRIES = 10  # boxes torchvision's RandomResizedCrop draws before it falls back to a centre crop
# Bytes of crops worked on at once. On CPU a chunk and its temporaries should stay in the second-level cache.
CHUNK = {"cpu": 2**20, "cuda": 2**29}
LARGE = 80  # pixels of the longer side from which images on CPU are faster one by one


@dataclass(frozen=True)
class View:
    """One kind of random crop; torchvision's transform of the same name defines each field.

    Args:
        size: Output side, pixels.
        scale: Range of the crop's share of the image area, drawn uniformly.
        ratio: Range of the crop's width / height, drawn log-uniformly.
        interpolation: "bicubic" or "bilinear", antialiased as in PIL.
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

    Raises:
        UserError: A field is out of range.
    """

    size: int
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

    def __post_init__(self) -> None:
        for name, length in {"scale": 2, "ratio": 2, "jitter": 4, "blur_sigma": 2, "mean": 3, "std": 3}.items():
            value = tuple(getattr(self, name))
            _check(len(value) == length, name, value, f"must have {length} values")
            object.__setattr__(self, name, value)  # a list from a recipe becomes hashable
        for name in ("size", "count"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
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


def describe(views: Sequence[View]) -> str:
    """How many crops of which size, as the tables print it.

    Example:
        >>> describe([View(224), View(224, blur=0.1), View(96, count=10)])
        '2x224 + 10x96'
    """
    sizes = groupby(views, key=lambda view: view.size)
    return " + ".join(f"{sum(view.count for view in group)}x{size}" for size, group in sizes)


def make_views(images: Tensor, views: Sequence[View], generator: torch.Generator) -> list[Tensor]:
    """Draw every view of every image of a batch, each crop with a draw of its own.

    Values stay in float from the crop to the end, where PIL rounds to 8 bits after every step. Nothing here waits for
    a CUDA device.

    Args:
        images: uint8 (B, 3, H, W).
        views: The crops to draw.
        generator: On the device of `images`; the same state gives the same views.

    Returns:
        One float32 (B, 3, size, size) per crop, normalised: the `count` crops of the first view, then of the next.
    """
    assert images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3, (images.dtype, images.shape)
    batch = len(images)
    crops = [view for view in views for _ in range(view.count)]
    draws = _draw(tuple(crops), batch, images.shape[2], images.shape[3], generator)
    if _on_host(images) and max(images.shape[2:]) > LARGE:
        return [
            torch.stack([_view_one(*job) for job in zip(images, [view] * batch, rows, strict=True)])
            for view, rows in zip(crops, _rows(draws), strict=True)
        ]
    outputs: dict[int, Tensor] = {}
    for group in _groups(crops):
        draw = Draw(*(torch.cat([field[crop] for crop in group]) for field in draws))
        outputs.update(zip(group, _run(images, [crops[crop] for crop in group], draw), strict=True))
    return [outputs[crop] for crop in range(len(crops))]


def view_image(image: Tensor, views: Sequence[View], generator: torch.Generator | int) -> list[Tensor]:
    """Draw the views of one image of any size; for the worker processes of a loader.

    Args:
        image: uint8 (3, H, W), on CPU.
        views: The crops to draw.
        generator: A CPU generator, or a seed.

    Returns:
        One float32 (3, size, size) per crop, in the order of `make_views`.
    """
    assert image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3, (image.dtype, image.shape)
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    crops = tuple(view for view in views for _ in range(view.count))
    draws = _draw(crops, 1, image.shape[1], image.shape[2], generator)
    return [_view_one(image, view, row) for view, (row,) in zip(crops, _rows(draws), strict=True)]


def resize_crop(image: Tensor, size: int, interpolation: str = "bicubic") -> Tensor:
    """The evaluation crop: short side to size * 256 / 224, then the centre (DINO, MAE, iBOT).

    Args:
        image: uint8 (..., 3, H, W), any H and W. An image that is already size x size is returned as it is.
        size: Output side, pixels.
        interpolation: "bicubic", or "bilinear" as in MoCo v3.

    Returns:
        uint8 (..., 3, size, size).

    Example:
        >>> resize_crop(torch.zeros(3, 375, 500, dtype=torch.uint8), 224).shape
        torch.Size([3, 224, 224])
    """
    if image.shape[-2:] == (size, size):
        return image
    if interpolation not in FILTERS:
        raise unknown("interpolation", interpolation, FILTERS)
    resized = tv.resize(image, [round(size * 256 / 224)], FILTERS[interpolation], antialias=True)
    return tv.center_crop(resized, [size, size])


def eval_images(
    images: Tensor,
    size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Evaluation crops of a batch, normalised.

    Args:
        images: uint8 (B, 3, H, W).
        size: Output side, pixels; images of that size are only normalised.
        mean: Per channel, on the scale [0, 1].
        std: Per channel.

    Returns:
        float32 (B, 3, size, size).
    """
    return tv.normalize(resize_crop(images, size).float().div_(255), list(mean), list(std), inplace=True)


# Drawing the random numbers ------------------------------------------------------------------------------------------


class Draw(NamedTuple):
    """What was drawn for each crop: fields of shape (crops, B) or (crops, B, 4)."""

    top: Tensor  # the box, whole pixels of the input
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor  # bool
    order: Tensor  # (..., 4) index into COLOUR of the first, second, ... operation; -1 = no jitter
    factors: Tensor  # (..., 4) of brightness, contrast, saturation and hue
    gray: Tensor  # bool
    blur: Tensor  # bool
    sigma: Tensor  # pixels of the output
    solarize: Tensor  # bool


def _rows(draws: Draw) -> list[list[Draw]]:
    """The draws as plain numbers: for each crop, for each image."""
    return [[Draw(*row) for row in zip(*crop, strict=True)] for crop in zip(*(f.tolist() for f in draws), strict=True)]


@lru_cache(maxsize=64)
def _table(crops: tuple[View, ...], device: torch.device) -> Tensor:
    """The numbers of the views as a (22, crops, 1) tensor; cached, because a copy to CUDA waits for the device."""
    rows = []
    for v in crops:
        low = [max(0.0, 1 - strength) for strength in v.jitter[:3]] + [-v.jitter[3]]
        high = [1 + strength for strength in v.jitter[:3]] + [v.jitter[3]]
        log_ratio = [math.log(side) for side in v.ratio]
        chances = [v.flip, v.jitter_p, v.grayscale, v.blur, v.solarize]
        rows.append([*v.scale, *v.ratio, *log_ratio, *chances, *v.blur_sigma, *low, *high])
    return torch.tensor(rows, device=device).T.unsqueeze(-1)


def _draw(crops: tuple[View, ...], batch: int, height: int, width: int, generator: torch.Generator) -> Draw:
    """Draw all random numbers of `crops` for `batch` images of height x width pixels."""
    table = _table(crops, generator.device)
    u = torch.rand(2 * TRIES + 16, len(crops), batch, generator=generator, device=generator.device)

    # RandomResizedCrop.get_params, all tries at once: the first box that fits, or the largest centred one.
    area = torch.lerp(table[0], table[1], u[:TRIES]) * (height * width)
    ratio = torch.lerp(table[4], table[5], u[TRIES : 2 * TRIES]).exp_()
    boxes = torch.stack([(area / ratio).sqrt_(), (area * ratio).sqrt_()]).round_()  # (2, tries, crops, B)
    heights, widths = boxes
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.byte().argmax(0)  # the first of equal maxima
    found = fits.any(0)
    h, w = boxes.gather(1, first.expand(2, 1, -1, -1)).squeeze(1)
    h = torch.where(found, h, (width / table[2]).round_().clamp_(max=height))
    w = torch.where(found, w, (height * table[3]).round_().clamp_(max=width))
    u = u[2 * TRIES :]
    # u * n can round up to n in float32
    top = torch.where(found, torch.minimum((u[0] * (height - h + 1)).floor_(), height - h), ((height - h) / 2).floor_())
    left = torch.where(found, torch.minimum((u[1] * (width - w + 1)).floor_(), width - w), ((width - w) / 2).floor_())

    flip, jittered, gray, blur, solarize = u[2:7] < table[6:11]
    sigma = torch.lerp(table[11], table[12], u[7])
    factors = torch.lerp(table[13:17], table[17:21], u[8:12]).movedim(0, -1)
    order = torch.where(jittered, u[12:16].argsort(0), -1).movedim(0, -1)
    return Draw(top, left, h, w, flip, order, factors, gray, blur, sigma, solarize)


def _groups(crops: Sequence[View]) -> Iterator[list[int]]:
    """Indices of the crops that can be worked on together."""

    def key(crop: int) -> tuple[object, ...]:
        view = crops[crop]
        return view.size, view.interpolation, view.mean, view.std, view.solarize_threshold

    for _, group in groupby(sorted(range(len(crops)), key=key), key=key):
        yield list(group)


# Batched execution: x is float32 (N, 3, S, S) in [0, 1], parameters are (N,) -----------------------------------------


def _run(images: Tensor, views: Sequence[View], draw: Draw) -> Tensor:
    """Views of equal size of `images` (B, 3, H, W) as (views, B, 3, S, S); the fields of `draw` are (views * B,)."""
    view = views[0]
    x = torch.empty(len(views) * len(images), 3, view.size, view.size, device=images.device)
    _crop(images, view, draw, x)
    used = [index for index in range(4) if any(v.jitter[index] and v.jitter_p for v in views)]
    if used:
        _jitter(x, draw.order, draw.factors, used)
    if any(v.grayscale for v in views):
        _apply(x, draw.gray, _drop_colour)
    if any(v.blur for v in views):
        _apply(x, draw.blur, gaussian_blur, draw.sigma)
    if any(v.solarize for v in views):
        _apply(x, draw.solarize, partial(_solarize, threshold=view.solarize_threshold))
    shift, gain = _normaliser(view.mean, view.std, x.device)
    for piece in x.split(_step(x)):
        piece.mul_(gain).add_(shift)
    return x.view(len(views), len(images), *x.shape[1:])


@lru_cache(maxsize=64)
def _normaliser(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    mean_, std_ = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    return (-mean_ / std_).to(device), (1 / std_).to(device)


def _on_host(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _step(x: Tensor) -> int:
    """How many images of `x` (N, ...) to work on at once."""
    return max(1, CHUNK["cpu" if _on_host(x) else "cuda"] // (x[0].numel() * 4))


def _crop(images: Tensor, view: View, draw: Draw, out: Tensor) -> None:
    """Crop, resize and flip `images` (B, 3, H, W) into `out` (views * B, 3, S, S) by one small matrix per axis."""
    batch, _, height, width = images.shape
    step = _step(images)
    for start in range(0, batch, step):
        pixels = images[start : start + step].float().div_(255).flatten(1, 2)
        for first in range(start, len(out), batch):  # of each view
            rows = slice(first, first + len(pixels))
            across = resampling(draw.left[rows], draw.width[rows], width, view, draw.flip[rows])
            down = resampling(draw.top[rows], draw.height[rows], height, view)
            # PIL saturates after each pass, which only bicubic can overshoot.
            x = (pixels @ across.mT).clamp_(0, 1).view(-1, 3, height, view.size)
            torch.matmul(down.unsqueeze(1), x, out=out[rows]).clamp_(0, 1)


def _jitter(x: Tensor, order: Tensor, factors: Tensor, used: Sequence[int]) -> None:
    """Apply the colour operations `used` to each image in its own `order` (N, 4), in place."""
    if not _on_host(x):
        for position in range(4):
            for index in used:
                _apply(x, order[:, position] == index, COLOUR[index], factors[:, index])
        return
    # Images with the same order go through their operations together.
    key, rows = (order * torch.tensor([64, 16, 4, 1])).sum(1).sort()
    for same in rows.split(key.unique_consecutive(return_counts=True)[1].tolist()):
        operations = [index for index in order[same[0]].tolist() if index in used]
        for group in same.split(_step(x)) if operations else ():
            y, chosen = x[group], factors[group].T
            for index in operations:
                y = COLOUR[index](y, chosen[index])
            x.index_copy_(0, group, y)


def _apply(x: Tensor, chosen: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> None:
    """Apply `operation` in place to the chosen images; `chosen` and parameters are (N,).

    On CPU only they are computed. Elsewhere their number is not known without waiting for the device, so all are.
    """
    if _on_host(x):
        for rows in chosen.nonzero().squeeze(1).split(_step(x)):
            x.index_copy_(0, rows, operation(x.index_select(0, rows), *(p[rows] for p in parameters)))
        return
    for start in range(0, len(x), _step(x)):
        rows = slice(start, start + _step(x))
        changed = operation(x[rows], *(p[rows] for p in parameters))
        torch.where(chosen[rows].view(-1, 1, 1, 1), changed, x[rows], out=x[rows])


def resampling(start: Tensor, length: Tensor, n_in: int, view: View, flip: Tensor | None = None) -> Tensor:
    """Matrices that cut [start, start + length) out of `n_in` pixels and resize it to `view.size`, as PIL does.

    Args:
        start: (N,) first pixel.
        length: (N,) pixels.
        n_in: Input pixels.
        view: Gives the output pixels and the interpolation.
        flip: (N,) bool, reverse the result.

    Returns:
        float32 (N, view.size, n_in), rows sum to 1.
    """
    n_out = view.size
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    pixel = torch.arange(n_in, device=start.device, dtype=torch.float32)
    target = torch.arange(0.5, n_out, device=start.device).view(-1, 1)
    if flip is not None:
        target = torch.where(flip.view(-1, 1, 1), n_out - target, target)  # (N, n_out, 1)
    scale = length / n_out
    stretch = scale.clamp(min=1)  # antialiasing: the filter widens when the image shrinks
    t = ((pixel + 0.5 - start) / stretch - target * (scale / stretch)).abs_()
    if view.interpolation == "bilinear":
        weights = t.neg_().add_(1).clamp_(min=0)
    else:
        # Keys' cubic with a = -0.5: p^2 (p - 1) / 2 below distance 2, plus q^2 (1 - 2 q) below distance 1
        p = t.neg_().add_(2).clamp_(min=0)
        q = (p - 1).clamp_(min=0)
        weights = (p - 1).mul_(p).mul_(p).mul_(0.5).add_((q * -2).add_(1).mul_(q).mul_(q))
    weights *= (pixel >= start) & (pixel < start + length)
    return weights.div_(weights.sum(-1, keepdim=True))


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of standard deviation `sigma` (N,) pixels; the border pixels are repeated outwards, as in PIL."""
    size = x.shape[-1]
    distance = torch.arange(size, device=x.device)
    # Whole-pixel distances 0 .. size-1 to either side; what lies beyond is below 1e-7 unless sigma > size / 5.
    kernel = torch.exp(distance.square() / (-2 * sigma.square().unsqueeze(1)))  # (N, size)
    kernel /= 2 * kernel.sum(1, keepdim=True) - kernel[:, :1]
    matrix = kernel[:, (distance.unsqueeze(1) - distance).abs_()]  # (N, size, size)
    tail = kernel.flip(1).cumsum(1)  # weight at distance size-1-i and beyond
    matrix[:, :, -1] = tail
    matrix[:, :, 0] = tail.flip(1)
    return matrix.unsqueeze(1) @ (x @ matrix.mT.unsqueeze(1))


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the values."""
    return (x * factor.view(-1, 1, 1, 1)).clamp_(max=1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Move the values away from (factor > 1) or towards the mean gray of the image."""
    means = x.mean((2, 3))  # (N, 3)
    mean = means[:, 0] * GRAY[0] + means[:, 1] * GRAY[1] + means[:, 2] * GRAY[2]
    return (x * factor.view(-1, 1, 1, 1)).add_(((1 - factor) * mean).view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Move the values away from (factor > 1) or towards the gray of their pixel."""
    factor = factor.view(-1, 1, 1, 1)
    return (x * factor).add_(_gray(x).mul_(1 - factor)).clamp_(0, 1)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of HSV by `shift` (N,) of a full circle, at equal saturation and value."""
    red, green, blue = x.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - low
    # With the channels stretched to [0, 1], the hue in sixths of the circle is +-(1 + green + blue - red), positive
    # when green > blue: one formula for the six sectors of HSV. Gray pixels (chroma 0) may get any hue.
    hue = (green + blue).sub_(red).sub_(low).div_(chroma.clamp(min=1e-12)).add_(1).copysign_(green - blue)
    hue.add_(6 * shift.view(-1, 1, 1))
    hue.sub_((hue / 6).floor_(), alpha=6)
    # Back to channels: |hue - centre| clamped to [1, 2] rises from 1 to 2 where red falls (centre 3) or rises.
    red_base, other_base = low - chroma, value + chroma
    out = torch.empty_like(x)
    for channel, (centre, base, sign) in enumerate(((3, red_base, 1), (2, other_base, -1), (4, other_base, -1))):
        torch.addcmul(base, chroma, (hue - centre).abs_().clamp_(1, 2), value=sign, out=out[:, channel])
    return out


COLOUR = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def _gray(x: Tensor) -> Tensor:
    """(N, 3, S, S) -> (N, 1, S, S)."""
    return (x[:, 0:1] * GRAY[0]).add_(x[:, 1:2], alpha=GRAY[1]).add_(x[:, 2:3], alpha=GRAY[2])


def _drop_colour(x: Tensor) -> Tensor:
    return _gray(x).expand_as(x)


def _solarize(x: Tensor, threshold: float) -> Tensor:
    return torch.where(x >= threshold, 1 - x, x)


# One image at a time -------------------------------------------------------------------------------------------------


def _view_one(image: Tensor, view: View, draw: Draw) -> Tensor:
    """One crop of `image` (3, H, W); the fields of `draw` are plain numbers."""
    top, left, height, width = (int(side) for side in draw[:4])
    size = [view.size, view.size]
    crop = tv.resized_crop(image, top, left, height, width, size, FILTERS[view.interpolation], antialias=True)
    if draw.flip:
        crop = crop.flip(-1)
    x = crop.contiguous().unsqueeze(0) / 255
    for index in draw.order:
        if index >= 0 and view.jitter[index]:
            x = COLOUR[index](x, torch.tensor([draw.factors[index]]))
    if draw.gray:
        x = _drop_colour(x)
    if draw.blur:
        x = _blur_one(x, float(draw.sigma))
    if draw.solarize:
        x = _solarize(x, view.solarize_threshold)
    shift, gain = _normaliser(view.mean, view.std, x.device)
    return x.squeeze(0).mul(gain).add_(shift)


def _blur_one(x: Tensor, sigma: float) -> Tensor:
    """`gaussian_blur` of (1, 3, S, S) as a sum of shifted images; cut at 4 sigma, where 6e-5 of the weight is left."""
    size, radius = x.shape[-1], math.ceil(4 * sigma)
    kernel = [math.exp(-((distance / sigma) ** 2) / 2) for distance in range(radius + 1)]
    total = 2 * sum(kernel) - kernel[0]
    for axis, border in ((-1, (radius, radius, 0, 0)), (-2, (0, 0, radius, radius))):
        wide = pad(x, border, mode="replicate")
        x = wide.narrow(axis, radius, size) * (kernel[0] / total)
        for d in range(1, radius + 1):
            x.add_(wide.narrow(axis, radius - d, size) + wide.narrow(axis, radius + d, size), alpha=kernel[d] / total)
    return x


def _check(good: bool, name: str, value: object, rule: str) -> None:
    if not good:
        raise UserError(f"view {name}={value} {rule}")

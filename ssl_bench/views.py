"""Views: the random crops a method learns from, as data, and the two ways to draw them.

`make_views` cuts all views of a batch at once on the device that holds it, with an independent draw for every image;
`view_image` cuts the views of one image of any size, for the worker processes of a loader. Both draw from the same
sampler and follow torchvision's per-image transforms in the order of the official self-supervised pipelines:
crop, flip, colour jitter, grayscale, blur, solarise, normalise.

On one core, against those pipelines on PIL images (`benchmarks/views.py`): `make_views` draws the views of 32 px images
8 to 10 (MAE), 11 to 12 (MoCo v3) and 15 to 17 (DINO) times as fast, `view_image` those of 500 x 375 pixels at 224 px
1.4 to 1.9, 2.2 to 3.3 and 2.4 to 2.7 times. The latter crops with torchvision's 8-bit kernel and colours in float:
PIL's hue costs 6 times as much, its blur 2 to 7 times. Where nothing is coloured (MAE), torchvision v2 on tensors
is faster still: 2.0 to 2.4 times.
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

from ssl_bench.errors import UserError, unknown
from ssl_bench.imageops import COLOUR, blur_one, drop_colour, gaussian_blur, resampling, resize_lanczos, solarize

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FILTERS = {
    "bilinear": tv.InterpolationMode.BILINEAR,
    "bicubic": tv.InterpolationMode.BICUBIC,
    "lanczos": tv.InterpolationMode.LANCZOS,
}
TRIES = 10  # boxes torchvision's RandomResizedCrop draws before it falls back to a centre crop
# Bytes of crops worked on at once. On CPU a chunk and its temporaries should stay in cache.
CHUNK = {"cpu": 2**20, "cuda": 2**29}
LARGE = 96  # pixels of the longer side from which images on CPU are faster one by one


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


def describe(views: Sequence[View]) -> str:
    """How many crops of which size, as the tables print it.

    Example:
        >>> describe([View(224), View(224, blur=0.1), View(96, count=10)])
        '2x224 + 10x96'
    """
    sizes = groupby(views, key=lambda view: view.sides)
    names = ((sum(view.count for view in group), h if h == w else f"({h}x{w})") for (h, w), group in sizes)
    return " + ".join(f"{count}x{side}" for count, side in names)


def make_views(
    images: Tensor, views: Sequence[View], generator: torch.Generator, process: tuple[int, int] = (0, 1)
) -> list[Tensor]:
    """Draw every view of every image of a batch, each crop with a draw of its own.

    Values stay in float from the crop to the end, where PIL rounds to 8 bits after every step. Nothing here waits for
    a CUDA device.

    Args:
        images: uint8 (B, 3, H, W).
        views: The crops to draw.
        generator: On the device of `images`; the same state gives the same views.
        process: Rank and number of processes: draw for the joint batch and take this process's rows.

    Returns:
        One float32 (B, 3, H', W') per crop, normalised: the `count` crops of the first view, then of the next.
    """
    assert images.dtype == torch.uint8
    assert images.ndim == 4
    batch = len(images)
    crops = [view for view in views for _ in range(view.count)]
    rank, world = process
    draws = _draw(tuple(crops), batch * world, images.shape[2], images.shape[3], generator)
    if world > 1:
        draws = Draw(*(field[:, rank * batch : (rank + 1) * batch] for field in draws))
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
        One float32 (3, H', W') per crop, in the order of `make_views`.
    """
    assert image.dtype == torch.uint8
    assert image.ndim == 3
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    crops = tuple(view for view in views for _ in range(view.count))
    draws = _draw(crops, 1, image.shape[1], image.shape[2], generator)
    return [_view_one(image, view, row) for view, (row,) in zip(crops, _rows(draws), strict=True)]


def resize_crop(image: Tensor, size: int | tuple[int, int], interpolation: str = "bicubic") -> Tensor:
    """The evaluation crop: short side to size * 256 / 224, then the centre (DINO, MAE, iBOT).

    Args:
        image: uint8 (..., 3, H, W), any H and W. An image that already has the size is returned as it is.
        size: Output side, or height and width, pixels; an oblong is cut from the smallest resize that covers it.
        interpolation: "bicubic", or "bilinear" as in MoCo v3.

    Returns:
        uint8 (..., 3, *size).

    Example:
        >>> resize_crop(torch.zeros(3, 375, 500, dtype=torch.uint8), 224).shape
        torch.Size([3, 224, 224])
    """
    height, width = (size, size) if isinstance(size, int) else size
    if image.shape[-2:] == (height, width):
        return image
    if interpolation not in ("bilinear", "bicubic"):
        raise unknown("interpolation", interpolation, ("bilinear", "bicubic"))
    whole = [round(height * 256 / 224)]
    if height != width:
        grow = max(height / image.shape[-2], width / image.shape[-1]) * 256 / 224
        whole = [round(side * grow) for side in image.shape[-2:]]
    return tv.center_crop(tv.resize(image, whole, FILTERS[interpolation], antialias=True), [height, width])


def eval_images(
    images: Tensor,
    size: int | tuple[int, int],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Evaluation crops of a batch, normalised.

    Args:
        images: uint8 (B, 3, H, W).
        size: Output side, or height and width, pixels; images of that size are only normalised.
        mean: Per channel, on the scale [0, 1].
        std: Per channel.

    Returns:
        float32 (B, 3, *size).
    """
    return tv.normalize(resize_crop(images, size).float().div_(255), list(mean), list(std), inplace=True)


def normalize(images: Tensor, view: View) -> Tensor:
    """Pixels in [0, 1] (B, 3, H, W) as the view hands them to a method."""
    shift, gain = _normaliser(view.mean, view.std, images.device)
    return images * gain + shift


def denormalize(images: Tensor, view: View) -> Tensor:
    """The inverse of ``normalize``, clamped to [0, 1]."""
    shift, gain = _normaliser(view.mean, view.std, images.device)
    return ((images - shift) / gain).clamp(0, 1)


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
    """The numbers of the views as a (21, crops, 1) tensor; cached, because a copy to CUDA waits for the device."""
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
    free = torch.stack([height - h, width - w])  # pixels the box can move by
    start = torch.minimum((u[:2] * (free + 1)).floor_(), free)  # u * n can round up to n in float32
    top, left = torch.where(found, start, (free / 2).floor_())
    flip, jittered, gray, blur, solarize = u[2:7] < table[6:11]
    sigma = torch.lerp(table[11], table[12], u[7])
    factors = torch.lerp(table[13:17], table[17:21], u[8:12]).movedim(0, -1)
    order = torch.where(jittered, u[12:16].argsort(0), -1).movedim(0, -1)
    draw = Draw(top, left, h, w, flip, order, factors, gray, blur, sigma, solarize)
    if any(crop.same for crop in crops):
        source = [0]
        for index, crop in enumerate(crops[1:], start=1):
            source.append(source[-1] if crop.same else index)
        draw = Draw(*(field[source] for field in draw))
    return draw


def _groups(crops: Sequence[View]) -> Iterator[list[int]]:
    """Indices of the crops that can be worked on together."""

    def key(crop: int) -> tuple[object, ...]:
        view = crops[crop]
        return view.sides, view.interpolation, view.mean, view.std, view.solarize_threshold

    for _, group in groupby(sorted(range(len(crops)), key=key), key=key):
        yield list(group)


# Batched execution: x is float32 (N, 3, H, W) in [0, 1], parameters are (N,) -----------------------------------------


def _run(images: Tensor, views: Sequence[View], draw: Draw) -> Tensor:
    """Views of equal size of `images` (B, 3, H, W) as (views, B, 3, *sides); the fields of `draw` are (views * B,)."""
    view = views[0]
    x = torch.empty(len(views) * len(images), 3, *view.sides, device=images.device)
    _crop(images, view, draw, x)
    used = [index for index in range(4) if any(v.jitter[index] and v.jitter_p for v in views)]
    if used:
        _jitter(x, draw.order, draw.factors, used)
    if any(v.grayscale for v in views):
        _apply(x, draw.gray, drop_colour)
    if any(v.blur for v in views):
        _apply(x, draw.blur, gaussian_blur, draw.sigma)
    if any(v.solarize for v in views):
        _apply(x, draw.solarize, partial(solarize, threshold=view.solarize_threshold))
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
    """Crop, resize and flip `images` (B, 3, H, W) into `out` (views * B, 3, *sides) by one small matrix per axis."""
    batch, _, height, width = images.shape
    step = _step(images)
    for start in range(0, batch, step):
        pixels = images[start : start + step].float().div_(255).flatten(1, 2)
        for first in range(start, len(out), batch):  # of each view
            rows = slice(first, first + len(pixels))
            to_height, to_width = view.sides
            across = resampling(draw.left[rows], draw.width[rows], width, to_width, view.interpolation, draw.flip[rows])
            down = resampling(draw.top[rows], draw.height[rows], height, to_height, view.interpolation)
            # PIL saturates after each pass, which only bicubic can overshoot.
            x = (pixels @ across.mT).clamp_(0, 1).view(-1, 3, height, to_width)
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


# One image at a time -------------------------------------------------------------------------------------------------


def _view_one(image: Tensor, view: View, draw: Draw) -> Tensor:
    """One crop of `image` (3, H, W); the fields of `draw` are plain numbers."""
    top, left, height, width = (int(side) for side in draw[:4])
    if view.interpolation == "lanczos":  # torchvision has it for PIL images only
        crop = resize_lanczos(image[:, top : top + height, left : left + width], view.sides)
    else:
        crop = tv.resized_crop(
            image, top, left, height, width, list(view.sides), FILTERS[view.interpolation], antialias=True
        )
    if draw.flip:
        crop = crop.flip(-1)
    x = crop.float().contiguous().div_(255).unsqueeze(0)
    for index in draw.order:
        if index >= 0 and view.jitter[index]:
            x = COLOUR[index](x, torch.tensor([draw.factors[index]]))
    if draw.gray:
        x = drop_colour(x)
    if draw.blur:
        x = blur_one(x, float(draw.sigma))
    if draw.solarize:
        x = solarize(x, view.solarize_threshold)
    shift, gain = _normaliser(view.mean, view.std, x.device)
    return x.squeeze(0).mul(gain).add_(shift)


def _check(good: bool, name: str, value: object, rule: str) -> None:
    if not good:
        raise UserError(f"view {name}={value} {rule}")

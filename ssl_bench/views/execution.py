"""The execution of views: their random numbers, and the crops cut with them, batched or one by one.

`view.py` says what a view is and how the two ways compare.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from ssl_bench.views.image_ops import COLOUR, blur_one, drop_colour, gaussian_blur, resampling, resize_lanczos, solarize
from ssl_bench.views.view import FILTERS, View

TRIES = 10  # boxes torchvision's RandomResizedCrop draws before it falls back to a centre crop
NUMBERS = 2 * TRIES + 16  # drawn for a crop
# Bytes of crops worked on at once. On CPU a chunk and its temporaries should stay in cache.
CHUNK = {"cpu": 2**20, "cuda": 2**29}


# Drawing the random numbers ------------------------------------------------------------------------------------------


class CropParameters(NamedTuple):
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


def as_numbers(params: CropParameters) -> list[list[CropParameters]]:
    """The parameters as plain numbers: for each crop, for each image."""
    return [
        [CropParameters(*row) for row in zip(*crop, strict=True)]
        for crop in zip(*(f.tolist() for f in params), strict=True)
    ]


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


def draw(crops: Sequence[View], batch: int, generator: torch.Generator) -> Tensor:
    """All random numbers of `crops` for `batch` images, uniform on [0, 1): (NUMBERS, crops, batch)."""
    return torch.rand(NUMBERS, len(crops), batch, generator=generator, device=generator.device)


def parameters(crops: tuple[View, ...], u: Tensor, height: int | Tensor, width: int | Tensor) -> CropParameters:
    """What the numbers `u` of ``draw`` mean for images of height x width pixels; (batch,) where these differ."""
    table = _table(crops, u.device)

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
    params = CropParameters(top, left, h, w, flip, order, factors, gray, blur, sigma, solarize)
    if any(crop.same for crop in crops):
        source = [0]
        for index, crop in enumerate(crops[1:], start=1):
            source.append(source[-1] if crop.same else index)
        params = CropParameters(*(torch.stack([field[index] for index in source]) for field in params))
    return params


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global CPU generators of `random`, NumPy and torch, for code that draws from them; restored at the end.

    Example:
        >>> with seeded(1):
        ...     one = random.random(), np.random.rand(), torch.rand(1)
        >>> with seeded(1):
        ...     one == (random.random(), np.random.rand(), torch.rand(1))
        True
    """
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def groups(crops: Sequence[View]) -> Iterator[list[int]]:
    """Indices of the crops that can be worked on together."""

    def key(crop: int) -> tuple[object, ...]:
        view = crops[crop]
        return view.sides, view.interpolation, view.mean, view.std, view.solarize_threshold

    for _, group in groupby(sorted(range(len(crops)), key=key), key=key):
        yield list(group)


# Batched execution: x is float32 (N, 3, H, W) in levels, parameters are (N,) ------------------------------------------


def run(images: Tensor, views: Sequence[View], params: CropParameters) -> Tensor:
    """Views of equal size of `images` (B, 3, H, W) as (views, B, 3, *sides); fields of `params`: (views * B,)."""
    view = views[0]
    x = torch.empty(len(views) * len(images), 3, *view.sides, device=images.device)
    _crop(images, view, params, x)
    used = [index for index in range(4) if any(v.jitter[index] and v.jitter_p for v in views)]
    if used:
        _jitter(x, params.order, params.factors, used)
    if any(v.grayscale for v in views):
        _apply(x, params.gray, drop_colour)
    if any(v.blur for v in views):
        _apply(x, params.blur, gaussian_blur, params.sigma)
    if any(v.solarize for v in views):
        _apply(x, params.solarize, partial(solarize, threshold=view.solarize_threshold))
    shift, gain = normaliser(view.mean, view.std, x.device, 255)
    for piece in x.split(_step(x)):
        piece.mul_(gain).add_(shift)
    return x.view(len(views), len(images), *x.shape[1:])


@lru_cache(maxsize=64)
def normaliser(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, white: float = 1
) -> tuple[Tensor, Tensor]:
    """Shift and gain (3, 1, 1) that normalise values from 0 to ``white``."""
    mean_, std_ = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    return (-mean_ / std_).to(device), (1 / (std_ * white)).to(device)


def on_host(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _step(x: Tensor) -> int:
    """How many images of `x` (N, ...) to work on at once."""
    return max(1, CHUNK["cpu" if on_host(x) else "cuda"] // (x[0].numel() * 4))


def _crop(images: Tensor, view: View, params: CropParameters, out: Tensor) -> None:
    """Crop, resize and flip `images` (B, 3, H, W) into `out` (views * B, 3, *sides) by one small matrix per axis."""
    batch, _, height, width = images.shape
    step = _step(images)
    for start in range(0, batch, step):
        pixels = images[start : start + step].float().flatten(1, 2)
        for first in range(start, len(out), batch):  # of each view
            rows = slice(first, first + len(pixels))
            to_height, to_width = view.sides
            across = resampling(
                params.left[rows], params.width[rows], width, to_width, view.interpolation, params.flip[rows]
            )
            down = resampling(params.top[rows], params.height[rows], height, to_height, view.interpolation)
            # PIL saturates, which only bicubic can overshoot, and rounds after each pass.
            x = (pixels @ across.mT).clamp_(0, 255).round_().view(-1, 3, height, to_width)
            torch.matmul(down.unsqueeze(1), x, out=out[rows]).clamp_(0, 255).round_()


def _jitter(x: Tensor, order: Tensor, factors: Tensor, used: Sequence[int]) -> None:
    """Apply the colour operations `used` to each image in its own `order` (N, 4), in place."""
    if not on_host(x):
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
    if on_host(x):
        for rows in chosen.nonzero().squeeze(1).split(_step(x)):
            x.index_copy_(0, rows, operation(x.index_select(0, rows), *(p[rows] for p in parameters)))
        return
    for start in range(0, len(x), _step(x)):
        rows = slice(start, start + _step(x))
        changed = operation(x[rows], *(p[rows] for p in parameters))
        torch.where(chosen[rows].view(-1, 1, 1, 1), changed, x[rows], out=x[rows])


# One image at a time -------------------------------------------------------------------------------------------------


def view_one(image: Tensor, view: View, params: CropParameters) -> Tensor:
    """One crop of `image` (3, H, W); the fields of `params` are plain numbers."""
    top, left, height, width = (int(side) for side in params[:4])
    if view.interpolation == "lanczos":  # torchvision has it for PIL images only
        crop = resize_lanczos(image[:, top : top + height, left : left + width], view.sides)
    else:
        crop = tv.resized_crop(
            image, top, left, height, width, list(view.sides), FILTERS[view.interpolation], antialias=True
        )
    if params.flip:
        crop = crop.flip(-1)
    if view.augment is not None:
        crop = view.augment(crop)
    x = crop.float().contiguous().unsqueeze(0)
    for index in params.order:
        if index >= 0 and view.jitter[index]:
            x = COLOUR[index](x, torch.tensor([params.factors[index]]))
    if params.gray:
        x = drop_colour(x)
    if params.blur:
        x = blur_one(x, float(params.sigma))
    if params.solarize:
        x = solarize(x, view.solarize_threshold)
    shift, gain = normaliser(view.mean, view.std, x.device, 255)
    return x.squeeze(0).mul(gain).add_(shift)

"""The crop that evaluations see, and the normalisation of pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torchvision.transforms.v2.functional as tv
from torch import Tensor

from ssl_bench.utils.errors import unknown
from ssl_bench.views.execution import normaliser
from ssl_bench.views.view import FILTERS, IMAGENET_MEAN, IMAGENET_STD, View


def resize_crop(image: Tensor, size: int | tuple[int, int], interpolation: str = "bicubic") -> Tensor:
    """The evaluation crop: short side to size * 256 / 224, then the centre (DINO, MAE, iBOT).

    Args:
        image: uint8 (..., 3, H, W), any H and W. An image that already has the size is returned as it is.
        size: Output side, or height and width, pixels; an oblong is cut from the smallest resize that covers it.
        interpolation: "bicubic", or "bilinear" as in MoCo v3.

    Returns:
        uint8 (..., 3, *size).

    Example:
        >>> import torch
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
    shift, gain = normaliser(view.mean, view.std, images.device)
    return images * gain + shift


def denormalize(images: Tensor, view: View) -> Tensor:
    """The inverse of ``normalize``, clamped to [0, 1]."""
    shift, gain = normaliser(view.mean, view.std, images.device)
    return ((images - shift) / gain).clamp(0, 1)

"""Image operations on a batch with one parameter an image: torchvision's on PIL images.

Images are float32 (N, 3, H, W) in levels, 0 to 255, parameters (N,). Brightness, contrast and saturation are rounded
down as by PIL, which would otherwise be 1.3 levels darker after the three; hue and blur are left in float.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

GRAY = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # PIL's rounding of the ITU-R 601 luma weights


def resampling(
    start: Tensor, length: Tensor, n_in: int, n_out: int, interpolation: str, flip: Tensor | None = None
) -> Tensor:
    """Matrices that cut [start, start + length) out of `n_in` pixels and resize it to `n_out`, as PIL does.

    Args:
        start: (N,) first pixel.
        length: (N,) pixels.
        n_in: Input pixels.
        n_out: Output pixels.
        interpolation: "bilinear", "bicubic" or "lanczos".
        flip: (N,) bool, reverse the result.

    Returns:
        float32 (N, n_out, n_in), rows sum to 1.
    """
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    pixel = torch.arange(n_in, device=start.device, dtype=torch.float32)
    target = torch.arange(0.5, n_out, device=start.device).view(-1, 1)
    if flip is not None:
        target = torch.where(flip.view(-1, 1, 1), n_out - target, target)  # (N, n_out, 1)
    scale = length / n_out
    stretch = scale.clamp(min=1)  # antialiasing: the filter widens when the image shrinks
    t = ((pixel + 0.5 - start) / stretch - target * (scale / stretch)).abs_()
    if interpolation == "bilinear":
        weights = t.neg_().add_(1).clamp_(min=0)
    elif interpolation == "lanczos":  # sinc(t) sinc(t / 3) below distance 3
        weights = torch.sinc(t) * torch.sinc(t / 3) * (t < 3)
    else:
        # Keys' cubic with a = -0.5: p^2 (p - 1) / 2 below distance 2, plus q^2 (1 - 2 q) below distance 1
        p = t.neg_().add_(2).clamp_(min=0)
        q = (p - 1).clamp_(min=0)
        weights = (p - 1).mul_(p).mul_(p).mul_(0.5).add_((q * -2).add_(1).mul_(q).mul_(q))
    weights *= (pixel >= start) & (pixel < start + length)
    return weights.div_(weights.sum(-1, keepdim=True))


def resize_lanczos(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W) -> uint8 (3, *size), rounded and saturated after each pass as in PIL."""
    x = image.float()
    for axis, side in ((2, size[1]), (1, size[0])):
        n = x.shape[axis]
        weights = resampling(torch.zeros(1), torch.tensor([float(n)]), n, side, "lanczos")[0]
        x = (x.movedim(axis, -1) @ weights.T).round_().clamp_(0, 255).movedim(-1, axis)
    return x.to(torch.uint8)


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of standard deviation `sigma` (N,) pixels; the border pixels are repeated outwards, as in PIL."""
    across = _blur_matrix(x.shape[-1], sigma)
    down = across if x.shape[-2] == x.shape[-1] else _blur_matrix(x.shape[-2], sigma)
    return down.unsqueeze(1) @ (x @ across.mT.unsqueeze(1))


def _blur_matrix(size: int, sigma: Tensor) -> Tensor:
    """(N, size, size): each row a Gaussian around its own pixel."""
    distance = torch.arange(size, device=sigma.device)
    # Whole-pixel distances 0 .. size-1 to either side; what lies beyond is below 1e-7 unless sigma > size / 5.
    kernel = torch.exp(distance.square() / (-2 * sigma.square().unsqueeze(1)))  # (N, size)
    kernel /= 2 * kernel.sum(1, keepdim=True) - kernel[:, :1]
    matrix = kernel[:, (distance.unsqueeze(1) - distance).abs_()]  # (N, size, size)
    tail = kernel.flip(1).cumsum(1)  # weight at distance size-1-i and beyond
    matrix[:, :, -1] = tail
    matrix[:, :, 0] = tail.flip(1)
    return matrix


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the values."""
    return (x * factor.view(-1, 1, 1, 1)).clamp_(max=255).floor_()


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Move the values away from (factor > 1) or towards the mean gray of the image, a whole level."""
    mean = gray(x).mean((1, 2, 3)).add_(0.5).floor_().view(-1, 1, 1, 1)
    return torch.addcmul(mean, x - mean, factor.view(-1, 1, 1, 1)).clamp_(0, 255).floor_()


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Move the values away from (factor > 1) or towards the gray of their pixel."""
    low = gray(x)
    return torch.addcmul(low, x - low, factor.view(-1, 1, 1, 1)).clamp_(0, 255).floor_()


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


def gray(x: Tensor) -> Tensor:
    """(N, 3, S, S) -> (N, 1, S, S), whole levels."""
    return (x[:, 0:1] * GRAY[0]).add_(x[:, 1:2], alpha=GRAY[1]).add_(x[:, 2:3], alpha=GRAY[2]).round_()


def drop_colour(x: Tensor) -> Tensor:
    return gray(x).expand_as(x)


def solarize(x: Tensor, threshold: float) -> Tensor:
    """Invert the values at or above a threshold in [0, 1]."""
    return torch.where(x >= 255 * threshold, 255 - x, x)


def blur_one(x: Tensor, sigma: float) -> Tensor:
    """`gaussian_blur` of (1, 3, S, S) as a sum of shifted images; cut at 4 sigma, where 6e-5 of the weight is left."""
    radius = math.ceil(4 * sigma)
    kernel = [math.exp(-((distance / sigma) ** 2) / 2) for distance in range(radius + 1)]
    total = 2 * sum(kernel) - kernel[0]
    for axis, border in ((-1, (radius, radius, 0, 0)), (-2, (0, 0, radius, radius))):
        wide = pad(x, border, mode="replicate")
        size = x.shape[axis]
        x = wide.narrow(axis, radius, size) * (kernel[0] / total)
        for d in range(1, radius + 1):
            x.add_(wide.narrow(axis, radius - d, size) + wide.narrow(axis, radius + d, size), alpha=kernel[d] / total)
    return x

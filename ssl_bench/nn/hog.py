"""Histograms of oriented gradients (Dalal and Triggs, CVPR 2005), as MaskFeat predicts them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 9


def histograms(images: Tensor, cell: int) -> Tensor:
    """Normalised histograms of unsigned gradient orientations in each channel and cell, computed in float32.

    Sobel gradients of the image (edges reflected); their magnitudes, weighted by a Gaussian window of two cells a side
    that is laid on the image again and again, are added up in nine bins of 20 degrees; the nine are divided by their
    norm (MaskFeat, section 3.2; mmpretrain, ``maskfeat.py``).

    Args:
        images: (B, C, H, W) float, sides that are multiples of the cell.
        cell: Side of a cell, pixels.

    Returns:
        (B, C, 9, H / cell, W / cell) float32.
    """
    batch, channels, height, width = images.shape
    with torch.autocast(images.device.type, enabled=False):
        planes = F.pad(images.float().flatten(0, 1)[:, None], (1, 1, 1, 1), mode="reflect")
        sobel = images.new_tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=torch.float32)
        gx, gy = F.conv2d(planes, torch.stack([sobel, sobel.T])[:, None]).unbind(1)
        bins = (torch.atan2(gx, gy) / math.pi * BINS).floor().long() % BINS
        strength = (gx.square() + gy.square()).sqrt() * _window(2 * cell, height, width, images.device)
        each = strength.new_zeros(len(strength), BINS, height, width).scatter(1, bins[:, None], strength[:, None])
        sums = F.avg_pool2d(each, cell) * cell**2
        return F.normalize(sums, dim=1, eps=1e-12).unflatten(0, (batch, channels))


def _window(side: int, height: int, width: int, device: torch.device) -> Tensor:
    """(height, width): a Gaussian of standard deviation side / 2 that sums to 1 over ``side`` squared, repeated."""
    at = torch.arange(side, device=device, dtype=torch.float32) - (side - 1) / 2
    bell = (-0.5 * (at / (side / 2)).square()).exp()
    window = torch.outer(bell, bell) / bell.sum() ** 2
    return window.repeat(-(-height // side), -(-width // side))[:height, :width]


def by_patch(found: Tensor, cells: int) -> Tensor:
    """Histograms (B, C, 9, h, w) as features of patches of cells x cells: (B, L, C * 9 * cells * cells).

    Patches row by row; within a patch channel, bin, cell row, cell column.
    """
    x = found.unflatten(4, (-1, cells)).unflatten(3, (-1, cells))  # (B, C, 9, rows, cells, columns, cells)
    return x.permute(0, 3, 5, 1, 2, 4, 6).flatten(3).flatten(1, 2)


def from_patches(features: Tensor, grid: tuple[int, int], cells: int) -> Tensor:
    """The inverse of ``by_patch`` for a grid of patches."""
    x = features.unflatten(2, (-1, BINS, cells, cells)).unflatten(1, grid)
    return x.permute(0, 3, 4, 1, 5, 2, 6).flatten(5).flatten(3, 4)


def draw(found: Tensor, cell: int) -> Tensor:
    """Histograms as strokes along the edges that they mean: (B, C, 9, h, w) -> (B, 3, h * cell, w * cell) in [0, 1]."""
    at = torch.arange(cell, device=found.device) - (cell - 1) / 2
    angle = (torch.arange(BINS, device=found.device) + 0.5) * math.pi / BINS
    away = (at * angle.sin()[:, None, None] + at[:, None] * angle.cos()[:, None, None]).abs()  # from the stroke
    strokes = (1 - away).clamp(0, 1)
    ink = torch.einsum("bnhw,nyx->bhywx", found.mean(dim=1).clamp(min=0), strokes)
    return ink.flatten(3).flatten(1, 2)[:, None].clamp(0, 1).expand(-1, 3, -1, -1)

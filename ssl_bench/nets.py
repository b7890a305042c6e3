"""Pieces of networks that two or more methods share: position tables, heads, EMA, gathers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sincos_position_embedding(dim: int, grid: tuple[int, int], first: str = "x") -> Tensor:
    """Fixed 2-D sine-cosine position table with a zero row for the cls token.

    Each axis takes half of the channels, as [sin(p w_0..), cos(p w_0..)] with w_k = 10000^(-k / (dim / 4)).

    Args:
        dim: Channels, a multiple of 4.
        grid: Rows and columns of patches.
        first: The axis in the first half of the channels: "x" (column; MAE, ``models_mae.py``) or
            "y" (row; MoCo v3, ``vits.py``).

    Returns:
        (1 + rows * columns, dim) float32, patches row by row.

    Example:
        >>> [round(v, 4) for v in sincos_position_embedding(8, (3, 3), "x")[2, :4].tolist()]
        [0.8415, 0.01, 0.5403, 0.9999]
    """
    assert dim % 4 == 0, f"a sine-cosine position table needs a multiple of 4 channels, got {dim}"
    omega = 10000 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    axes = {"x": (x, y), "y": (y, x)}[first]
    angles = [axis.flatten().double()[:, None] * omega for axis in axes]
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, dim), table.float()])


def mlp(dims: Sequence[int], *, bias: bool = True, last_norm: bool = False) -> nn.Sequential:
    """Linear - BN - ReLU, repeated, ending in a Linear: the projector and predictor of the contrastive methods.

    Args:
        dims: Widths, input first: ``[384, 4096, 4096, 256]`` is a 3-layer projector.
        bias: Whether the linear layers have one.
        last_norm: End with a batch norm without affine parameters (MoCo v3, ``builder.py``).
    """
    layers: list[nn.Module] = []
    for i, (d_in, d_out) in enumerate(pairwise(dims)):
        layers.append(nn.Linear(d_in, d_out, bias=bias))
        if i < len(dims) - 2:
            layers += [nn.BatchNorm1d(d_out), nn.ReLU(inplace=True)]
        elif last_norm:
            layers.append(nn.BatchNorm1d(d_out, affine=False))
    return nn.Sequential(*layers)


@torch.no_grad()
def ema_update(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Parameters of ``target`` <- momentum * target + (1 - momentum) * source. Buffers stay as they are."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), 1 - momentum)


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """(N, D) of every process, concatenated in rank order, without gradient; ``x`` itself in a single process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x
    parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def resample_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int) -> Tensor:
    """Bicubic interpolation of a position table to another grid; the prefix rows (cls, registers) stay.

    Args:
        table: (1, prefix + old rows * old columns, D).
        old: The grid of the table.
        new: The grid wanted.
        prefix: Rows that belong to no patch.
    """
    if old == new:
        return table
    patches = table[:, prefix:].unflatten(1, old).permute(0, 3, 1, 2)
    patches = F.interpolate(patches.float(), size=new, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :prefix], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)

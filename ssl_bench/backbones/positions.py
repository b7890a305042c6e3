"""Position tables: sine-cosine ones, and those of another grid by each paper's rule."""

from __future__ import annotations

import torch
from torch import Tensor
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


def resample_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int, rule: str) -> Tensor:
    """A position table for another grid; the prefix rows (cls, registers) stay.

    Args:
        table: (1, prefix + old rows * old columns, D).
        old: The grid of the table.
        new: The grid wanted.
        prefix: Rows that belong to no patch.
        rule: "size" or "dino", a learned table interpolated as ``to_size`` or ``to_dino_scale`` say; "sincos_xy" or
            "sincos_yx", the fixed table computed for the new grid.

    Returns:
        (1, prefix + new rows * new columns, D), of the table's dtype.
    """
    if old == new:
        return table
    if rule.startswith("sincos"):
        patches = sincos_position_embedding(table.shape[2], new, first=rule[-2])[None, 1:].to(table)
    else:
        cells = table[:, prefix:].unflatten(1, old).permute(0, 3, 1, 2).float()
        patches = {"size": to_size, "dino": to_dino_scale}[rule](cells, new).flatten(2).transpose(1, 2)
    return torch.cat([table[:, :prefix], patches.to(table.dtype)], dim=1)


def to_size(cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bicubic interpolation to a size, without antialiasing (MAE, ``util/pos_embed.py``; EVA): (1, D, H, W)."""
    return F.interpolate(cells, size=grid, mode="bicubic", align_corners=False)


def to_dino_scale(cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bicubic interpolation by the scale (new + 0.1) / old, without antialiasing: (1, D, H, W).

    The 0.1 keeps the size from being rounded down, and moves every sample a little (DINO and iBOT,
    ``vision_transformer.py``).
    """
    scale = ((grid[0] + 0.1) / cells.shape[2], (grid[1] + 0.1) / cells.shape[3])
    return F.interpolate(cells, scale_factor=scale, mode="bicubic", align_corners=False)

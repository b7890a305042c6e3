"""Random masks of patches, as pure functions. Everywhere, True means masked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_bench.utils.distributed import all_mean
from ssl_bench.utils.errors import UserError

ATTEMPTS = 64  # attempts drawn at once: a BEiT mask takes 11 on average and in 20,000 draws never more than this


class Shuffle(NamedTuple):
    """Which patches stay visible and which are masked (MAE, section 3)."""

    ids_keep: Tensor  # (B, K) int64, the visible patches in shuffled order
    ids_masked: Tensor  # (B, L - K) int64, the others, likewise
    mask: Tensor  # (B, L) bool, True = masked


def random_masking(noise: Tensor, mask_ratio: float) -> Shuffle:
    """Keep the patches with the smallest noise, as MAE does.

    Args:
        noise: (B, L) float, one draw a patch.
        mask_ratio: Part of the patches to mask; ``int(L * (1 - mask_ratio))`` stay visible.

    Example:
        >>> import torch
        >>> s = random_masking(torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.8, 0.4]]), 0.75)
        >>> s.ids_keep.tolist(), s.ids_masked.tolist(), s.mask.int().tolist()
        ([[1, 5]], [[3, 7, 2, 4, 6, 0]], [[1, 0, 1, 1, 1, 0, 1, 1]])
    """
    n_keep = int(noise.shape[1] * (1 - mask_ratio))
    if not 0 < n_keep < noise.shape[1]:
        raise UserError(f"mask_ratio {mask_ratio:g} keeps {n_keep} of {noise.shape[1]} patches; some must be masked")
    ids_shuffle = noise.argsort(dim=1)
    ids_keep, ids_masked = ids_shuffle[:, :n_keep], ids_shuffle[:, n_keep:]
    mask = torch.zeros_like(ids_shuffle, dtype=torch.bool).scatter(1, ids_masked, True)
    return Shuffle(ids_keep, ids_masked, mask)


def block_masking(target: Tensor, grid: tuple[int, int], min_area: float, uniform: Callable[[int], Tensor]) -> Tensor:
    """Rectangles of random area, aspect ratio and place until ``target`` cells are masked (BEiT, algorithm 1; iBOT).

    One attempt proposes a rectangle with area ~ U(min_area, cells still wanted), in either order of the two, and log
    aspect ratio ~ U(ln 0.3, ln 1/0.3), sides rounded half to even. It must be smaller than the grid in both directions
    and newly cover at least one cell and no more than are still wanted. Ten attempts in a row that fail end an image,
    so the count never exceeds the target and often falls a little short: on BEiT's 14 x 14 cells with target 75 and
    least area 16 it is 75 for two images in three, and at least 64. A least area above the target or the inner
    (H - 1) (W - 1) cells makes most attempts fail and leaves masks far too small or empty: scale it with the grid.

    Args:
        target: (B,) float, the number of cells to mask in each image; 0 or less leaves it unmasked.
        grid: Rows H and columns W.
        min_area: Least area of a rectangle, cells (BEiT: 16).
        uniform: n -> (B, n) float, draws from U(0, 1) on the device of ``target``. It is asked for 64 attempts of four
            draws (area, aspect ratio, top, left) at a time, which is practically always enough; so processes that draw
            parts of one joint batch stay in step.

    Returns:
        (B, H, W) bool.

    Example:
        >>> draws = torch.tensor([[0.5, 0.5, 0.3, 0.6, *[0.5] * 252]])
        >>> block_masking(torch.tensor([9.0]), (6, 6), 9, lambda n: draws)[0].int().tolist()[:3]
        [[0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0]]
    """
    rows, columns = (torch.arange(side, device=target.device) for side in grid)
    mask = torch.zeros(len(target), *grid, dtype=torch.bool, device=target.device)
    wanted, failures = target, torch.zeros_like(target)
    while True:
        for area, aspect, top, left in uniform(4 * ATTEMPTS).unflatten(1, (ATTEMPTS, 4)).permute(1, 2, 0):
            unfinished = (wanted > 0) & (failures < 10)
            if not unfinished.any():
                return mask
            area = min_area + area * (wanted - min_area)
            aspect = (math.log(0.3) * (1 - 2 * aspect)).exp()
            height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
            top, left = (
                torch.minimum((u * (free + 1)).floor(), free)  # u * n can round up to n in float32
                for u, free in ((top, grid[0] - height), (left, grid[1] - width))
            )
            inside = [
                (at >= start[:, None]) & (at < (start + side)[:, None])
                for at, start, side in ((rows, top, height), (columns, left, width))
            ]
            new = inside[0][:, :, None] & inside[1][:, None] & ~mask
            covered = new.sum(dim=(1, 2))
            accept = unfinished & (height < grid[0]) & (width < grid[1]) & (covered > 0) & (covered <= wanted)
            mask |= new & accept[:, None, None]
            wanted = wanted - covered * accept
            failures = torch.where(accept, 0.0, failures + 1)


def masked_by_blocks(mask_ratio: float, min_block: int, grid: tuple[int, int]) -> int:
    """How many patches ``block_masking`` masks at most.

    Args:
        mask_ratio: Part of the patches.
        min_block: Least area of a block, patches.
        grid: Rows and columns of patches.

    Raises:
        UserError: A block of that area doesn't fit.

    Example:
        >>> masked_by_blocks(0.41, 16, (16, 16))
        105
    """
    rows, columns = grid
    n_masked = round(mask_ratio * rows * columns)
    largest = min(n_masked, (rows - 1) * (columns - 1))
    if not 1 <= min_block <= largest:
        raise UserError(
            f"min_block {min_block} does not fit {n_masked} masked patches of {rows} x {columns}: "
            f"it must be 1 to {largest}"
        )
    return n_masked


def fill_masks(mask: Tensor, n: int, noise: Tensor) -> Tensor:
    """Mask more cells, those of the largest noise, until there are ``n`` in each image (BEiT v2).

    Args:
        mask: (B, L) bool, True = masked, at most ``n`` a row.
        n: Masked cells of each image.
        noise: (B, L) float in [0, 1).

    Example:
        >>> mask = torch.tensor([[True, False, False, False], [True, False, False, True]])
        >>> fill_masks(mask, 2, torch.tensor([[0.1, 0.2, 0.9, 0.3]] * 2)).int().tolist()
        [[1, 0, 1, 0], [1, 0, 0, 1]]
    """
    return (noise + 2 * mask).argsort(dim=1, descending=True).argsort(dim=1) < n


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the masked values of the joint batch.

    The count is that of all processes, so that the mean over processes of this value, which is what averaged
    gradients belong to, is the mean over all masked values.

    Args:
        values: float, any shape.
        mask: bool, of the same shape.

    Example:
        >>> masked_mean(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, False, True]))
        tensor(3.5000)
    """
    return (values * mask).sum() / all_mean(mask.sum().float()).clamp(min=1)

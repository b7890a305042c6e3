"""Pieces of networks that two or more methods share: position tables, heads, EMA, gathers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

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
            layers += [BatchNorm1d(d_out), nn.ReLU(inplace=True)]
        elif last_norm:
            layers.append(BatchNorm1d(d_out, affine=False))
    return nn.Sequential(*layers)


class BatchNorm1d(nn.BatchNorm1d):
    """Batch norm over the joint batch of all processes, on any device (torch's synchronised one needs a GPU)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        _, world = process()
        if not self.training or world == 1:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        with torch.autocast(x.device.type, enabled=False):
            y = x.float()
            mean = Sum.apply(y.mean(dim=0)) / world
            var = Sum.apply((y - mean).square().mean(dim=0)) / world
            with torch.no_grad():
                n = len(y) * world
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum or 0.0)
                self.running_var.lerp_(var * n / (n - 1), self.momentum or 0.0)
            y = (y - mean) * (var + self.eps).rsqrt()
            return torch.addcmul(self.bias, y, self.weight) if self.affine else y


@torch.no_grad()
def ema_update(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Parameters of ``target`` <- momentum * target + (1 - momentum) * those of ``source`` with the same name.

    Parameters that only one of them has, and buffers, stay as they are.
    """
    own = dict(source.named_parameters())
    pairs = [(p, own[name]) for name, p in target.named_parameters() if name in own]
    torch._foreach_lerp_([p for p, _ in pairs], [p for _, p in pairs], 1 - momentum)


# Several processes: each holds its rows of the joint batch, in rank order ----------------------------------------


def process() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


class Sum(torch.autograd.Function):
    """Sum of a tensor over the processes; its gradient is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The same sum in every process."""
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Every process used the sum."""
        return Sum.forward(ctx, grad.contiguous())


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """(N, D) of every process, concatenated in rank order, without gradient; ``x`` itself in a single process."""
    _, world = process()
    if world == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world)]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def all_mean(x: Tensor) -> Tensor:
    """Mean of a tensor over the processes, without gradient."""
    _, world = process()
    if world == 1:
        return x.detach()
    x = x.detach().clone()
    torch.distributed.all_reduce(x)
    return x / world


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


def resample_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int) -> Tensor:
    """Bicubic interpolation of a position table to another grid; the prefix rows (cls, registers) stay.

    As in DINO (``vision_transformer.py``) the sampling follows the scale (new + 0.1) / old, where the 0.1 keeps the
    size from being rounded down; no antialiasing.

    Args:
        table: (1, prefix + old rows * old columns, D).
        old: The grid of the table.
        new: The grid wanted.
        prefix: Rows that belong to no patch.
    """
    if old == new:
        return table
    scale = ((new[0] + 0.1) / old[0], (new[1] + 0.1) / old[1])
    patches = table[:, prefix:].unflatten(1, old).permute(0, 3, 1, 2)
    patches = F.interpolate(patches.float(), scale_factor=scale, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :prefix], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)

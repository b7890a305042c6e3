"""Batch norm over the joint batch of several processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_bench.utils.distributed import Sum, process


class BatchNorm1d(nn.BatchNorm1d):
    """Batch norm over the joint rows of all processes, on any device (torch's synchronised one needs a GPU).

    Processes may hold different numbers of rows, also none: every row counts the same. A single row in all has a
    variance of 0, so that its output is the bias; torch refuses it.

    Example:
        >>> BatchNorm1d(2)(torch.tensor([[3.0, -1.0]])).tolist()
        [[0.0, 0.0]]
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, D) of the same dtype; computed in float32."""
        if not self.training or (process()[1] == 1 and len(x) > 1):
            return super().forward(x)
        return _joint(self, x)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the joint pixels of all processes, likewise; in a single process torch's."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        if not self.training or process()[1] == 1:
            return super().forward(x)
        pixels = x.movedim(1, -1)
        return _joint(self, pixels.flatten(0, 2)).view(pixels.shape).movedim(-1, 1)


def _joint(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Rows (N, D) normalised by the statistics of those of all processes, which the norm follows."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    with torch.autocast(x.device.type, enabled=False):
        y = x.float()
        add = Sum.apply if process()[1] > 1 else torch.clone
        rows = add(torch.full((), float(len(y)), device=y.device))
        mean = add(y.sum(dim=0)) / rows.clamp(min=1)
        var = add((y - mean).square().sum(dim=0)) / rows.clamp(min=1)
        with torch.no_grad():
            moved = (norm.momentum or 0.0) * (rows > 0)  # without a row there is nothing to follow
            norm.num_batches_tracked += rows > 0
            norm.running_mean.lerp_(mean, moved)
            norm.running_var.lerp_(var * rows / (rows - 1).clamp(min=1), moved)
        y = (y - mean) * (var + norm.eps).rsqrt()
        y = torch.addcmul(norm.bias, y, norm.weight) if norm.affine else y
        return y.to(x.dtype)

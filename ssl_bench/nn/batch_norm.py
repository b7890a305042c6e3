"""Batch norm over the joint batch of several processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_bench.utils.distributed import Sum, process


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

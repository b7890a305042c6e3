"""What DINO, iBOT and EsViT share: the centre of the teacher's outputs, their temperature, the loss between views."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_bench.nn.accumulation import batch_part
from ssl_bench.utils.distributed import all_mean


class Center(nn.Module):
    """The moving mean c of the teacher's logits, which keeps one output from winning everywhere.

    Args:
        out_dim: Outputs K.
        momentum: Of the mean.

    Example:
        >>> center = Center(3, 0.9)
        >>> center.update(torch.tensor([[0.0, 0.1, 0.0], [0.0, 0.3, 0.0]]))
        >>> [round(v, 4) for v in center.center[0].tolist()]
        [0.0, 0.02, 0.0]
    """

    def __init__(self, out_dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, out_dim))
        self.center: Tensor
        self.seen: Tensor  # the mean of the parts of this batch so far

    def sharpen(self, logits: Tensor, temperature: float) -> Tensor:
        """The teacher's distribution softmax((logits - c) / temperature): (..., K) -> (..., K) float32."""
        return ((logits.float() - self.center) / temperature).softmax(dim=-1)

    def update(self, logits: Tensor) -> None:
        """Move towards the mean of (..., K) logits of all processes, after they have been used.

        Where a batch is computed in parts it moves once, after the last, towards the mean over all of them.
        """
        mean, (number, count) = all_mean(logits.float().flatten(0, -2).mean(dim=0)), batch_part()
        self.seen = mean / count if number == 0 else self.seen + mean / count
        if number == count - 1:
            self.center.lerp_(self.seen, 1 - self.momentum)


def temperature_at(epoch: float, first: float, last: float, warmup: float) -> float:
    """The teacher's temperature: linear over the first ``warmup`` epochs, both ends included, constant in each epoch.

    Args:
        epoch: Fractional; ``first`` below 0.
        first: Temperature of epoch 0.
        last: Temperature from epoch ``warmup - 1`` on.
        warmup: Epochs, a part of one too where a training was shortened; 0 = ``last`` from the start.

    Example:
        >>> [round(temperature_at(e, 0.04, 0.07, 3), 4) for e in (0, 1.9, 2, 3, 4)]
        [0.04, 0.055, 0.07, 0.07, 0.07]
        >>> [round(temperature_at(e, 0.04, 0.07, 2.5), 4) for e in (0, 1, 2.2, 2.6)]
        [0.04, 0.06, 0.07, 0.07]
    """
    if epoch >= warmup:
        return last
    return first + (last - first) * min(max(int(epoch), 0) / max(warmup - 1, 1), 1.0)


def dino_loss(student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy over all pairs of a teacher's view u and another view v of the student (equation 3).

    Args:
        student: (V, B, K) logits, the global views first.
        targets: (2, B, K) float32 distributions of the teacher on the global views.
        temperature: Of the student.

    Example:
        >>> round(dino_loss(torch.zeros(10, 4, 16), torch.full((2, 4, 16), 1 / 16), 0.1).item(), 6)  # ln 16
        2.772589
    """
    log_q = (student.float() / temperature).log_softmax(dim=-1)
    cross = (targets.flip(0) * log_q[:2]).sum() + (targets.sum(dim=0) * log_q[2:].sum(dim=0)).sum()
    return -cross / ((2 * len(student) - 2) * student.shape[1])

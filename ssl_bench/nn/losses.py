"""Losses that two or more methods share."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ssl_bench.nn.masking import masked_mean


def cosine_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Negative mean cosine over the masked patches of the joint batch; a zero vector counts as 0 (EVA, EVA-02).

    Args:
        prediction: (B, L, C).
        target: (B, L, C).
        mask: (B, L) bool, True = masked; the visible patches don't count.

    Example:
        >>> import torch
        >>> prediction = torch.tensor([[[1, 2, 3], [-1, 0.5, 0.25]]])
        >>> target = torch.tensor([[[2, 1, 0.5], [0.3, -0.2, 0.1]]])
        >>> round(cosine_loss(prediction, target, torch.ones(1, 2, dtype=torch.bool)).item(), 6)
        0.116642
    """
    return -masked_mean(F.cosine_similarity(prediction.float(), target.float(), dim=-1, eps=1e-8), mask)

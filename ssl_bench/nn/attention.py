"""When torch's fused attention is worth it."""

from __future__ import annotations

import torch
from torch import Tensor


def fused_attention(x: Tensor) -> bool:
    """Whether timm's blocks should use torch's fused attention for an input on this device, in this context.

    On a CPU in bf16 its backward is up to 1.5 times as slow as plain matrix products.

    Example:
        >>> fused_attention(torch.zeros(1))
        True
    """
    return not (x.device.type == "cpu" and torch.is_autocast_enabled(x.device.type))

"""When torch's fused attention is worth it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SHORT = 32  # tokens: up to here a CPU trains faster by plain matrix products (benchmarks/attention.py)


def fused_attention(x: Tensor) -> bool:
    """Whether timm's blocks should use torch's fused attention for an input on this device, in this context.

    On a CPU in bf16 its backward is up to 1.5 times as slow as plain matrix products, and in fp32 up to 1.7 times for
    short sequences. In fp32 without a gradient, and for long sequences, it is faster. All tokens of an image count,
    also where attention stays within windows or mask units.

    Args:
        x: (B, tokens, D), what the attention gets.

    Example:
        >>> fused_attention(torch.zeros(1, 197, 96)), fused_attention(torch.zeros(1, 17, 96))
        (True, False)
        >>> with torch.no_grad():
        ...     fused_attention(torch.zeros(1, 17, 96))
        True
    """
    if x.device.type != "cpu":
        return True
    if torch.is_autocast_enabled("cpu"):
        return False
    return not torch.is_grad_enabled() or x.shape[1] > SHORT


def by_input(network: nn.Module) -> None:
    """Let every attention of timm in a network decide by what it gets, each time it is called.

    A value set from outside would be another one when checkpointed blocks are computed again for the gradient.
    """
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.register_forward_pre_hook(_choose)


def _choose(module: Any, args: tuple[Tensor, ...]) -> None:
    module.fused_attn = fused_attention(args[0])

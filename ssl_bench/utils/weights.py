"""Hashes of a network's weights and options."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ssl_bench.utils.files import content_hash


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and bytes of a state dict; without bytes for tensors on ``meta``, which have none."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.is_meta:
            continue
        tensor = tensor.cpu().contiguous()
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def options_hash(network: nn.Module) -> str:
    """sha256 over the classes and plain attributes of all modules, such as a number of attention heads."""
    plain = (bool, int, float, str, tuple)
    changing = ("training", "fused_attn")  # of a forward pass, not of the network
    options = {
        name: {
            "class": type(module).__qualname__,
            **{k: str(v) for k, v in vars(module).items() if isinstance(v, plain) and k not in changing},
        }
        for name, module in network.named_modules()
    }
    return content_hash(options)

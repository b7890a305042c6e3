"""Exponential moving averages of networks: momentum encoders and EMA teachers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import nn

from ssl_bench.nn.accumulation import batch_part
from ssl_bench.nn.sharding import local
from ssl_bench.utils.stopwatch import part


@part("EMA")
@torch.no_grad()
def ema_update(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Parameters of ``target`` <- momentum * target + (1 - momentum) * those of ``source`` with the same name.

    Parameters that only one of them has, and buffers, stay as they are. Once a step: where a batch is computed in
    parts, all but the first change nothing.
    """
    if batch_part()[0] > 0:
        return
    own = dict(source.named_parameters())
    pairs = [(local(p), local(own[name])) for name, p in target.named_parameters() if name in own]
    torch._foreach_lerp_([p for p, _ in pairs], [p for _, p in pairs], 1 - momentum)


class EMATeacher(nn.Module):
    """An average of past students: at first a copy, without drop path and mask token. Its names are the official ones.

    Args:
        backbone: The student's backbone.
        head: The student's head.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone: Any = copy.deepcopy(backbone)
        self.head: Any = copy.deepcopy(head)
        network: Any = self.backbone
        network.mask_token = None
        for module in self.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
        self.requires_grad_(False)

    def follow(self, backbone: nn.Module, head: nn.Module, momentum: float) -> None:
        """The moving average. Parameters that the teacher lacks (mask token, an own last layer) don't matter to it."""
        ema_update(self, nn.ModuleDict({"backbone": backbone, "head": head}), momentum)

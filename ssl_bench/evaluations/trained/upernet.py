"""UPerNet (Xiao et al., ECCV 2018, arXiv:1807.10221) on an encoder: what `segmentation-finetune` trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.evaluations.dense import feature_maps
from ssl_bench.nn.batch_norm import BatchNorm2d

POOLED = (1, 2, 3, 6)  # cells a side of the pooled maps
BESIDE = 256  # channels of the auxiliary head
DROPOUT = 0.1


class UPerNet(nn.Module):
    """Scores of classes from four maps of an encoder, and those of an auxiliary head from the third of them.

    Of an encoder of one stage the maps come from blocks at a third, half, two thirds and the end of its depth, and are
    resized to strides 4, 8, 16 and 32 of patches of 16 (BEiT, iBOT); of others they come from their stages.

    Args:
        network: A ``Backbone``; taken over.
        classes: C.
        channels: Of the head; the width of the encoder's tokens when 0.
    """

    def __init__(self, network: nn.Module, classes: int, channels: int) -> None:
        super().__init__()
        backbone: Any = network
        self.network = network
        plain = len(backbone.stages) == 1
        self.blocks = thirds(backbone.depth) if plain else backbone.last_blocks
        with torch.no_grad():
            dims = [each.shape[1] for each in self._maps(torch.zeros(1, 3, *backbone.image_size))]
        width = channels or backbone.embed_dim
        self.scales = nn.ModuleList(_scales(dims[0]) if plain else [nn.Identity() for _ in dims])
        self.pooled = nn.ModuleList(_conv(dims[-1], width, 1) for _ in POOLED)
        self.bottom = _conv(dims[-1] + len(POOLED) * width, width, 3)
        self.lateral = nn.ModuleList(_conv(dim, width, 1) for dim in dims[:-1])
        self.smooth = nn.ModuleList(_conv(width, width, 3) for _ in dims[:-1])
        self.fused = _conv(len(dims) * width, width, 3)
        self.classifier = nn.Sequential(nn.Dropout2d(DROPOUT), nn.Conv2d(width, classes, 1))
        self.third = min(2, len(dims) - 1)
        beside = _conv(dims[self.third], BESIDE, 3)
        self.auxiliary = nn.Sequential(beside, nn.Dropout2d(DROPOUT), nn.Conv2d(BESIDE, classes, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised -> scores (B, C, h, w) of the head and (B, C, h', w') of the auxiliary one."""
        maps = [scale(each) for scale, each in zip(self.scales, self._maps(images), strict=True)]
        last = maps[-1]
        pools = [
            _to(conv(F.adaptive_avg_pool2d(last, cells)), last) for conv, cells in zip(self.pooled, POOLED, strict=True)
        ]
        levels = [conv(each) for conv, each in zip(self.lateral, maps[:-1], strict=True)]
        levels.append(self.bottom(torch.cat([last, *pools], 1)))
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + _to(levels[i + 1], levels[i])
        levels = [*(conv(each) for conv, each in zip(self.smooth, levels[:-1], strict=True)), levels[-1]]
        scores = self.classifier(self.fused(torch.cat([_to(each, levels[0]) for each in levels], 1)))
        return scores, self.auxiliary(maps[self.third])

    def _maps(self, images: Tensor) -> list[Tensor]:
        """The map after each of `blocks`."""
        each = sorted(set(self.blocks))
        found = dict(zip(each, feature_maps(self.network, images, each), strict=True))
        return [found[block] for block in self.blocks]


def thirds(depth: int) -> list[int]:
    """The blocks, counted from 1, at a third, half, two thirds and the end; with few of them some stand twice.

    Example:
        >>> thirds(12), thirds(24), thirds(4), thirds(2)
        ([4, 6, 8, 12], [8, 12, 16, 24], [1, 2, 3, 4], [1, 1, 1, 2])
    """
    return [max(1, round(depth * share)) for share in (1 / 3, 1 / 2, 2 / 3, 1)]


def _scales(dim: int) -> list[nn.Module]:
    """Four times and twice as fine, as it is, and half as fine."""
    finest = nn.ConvTranspose2d(dim, dim, 2, 2), BatchNorm2d(dim), nn.GELU(), nn.ConvTranspose2d(dim, dim, 2, 2)
    return [nn.Sequential(*finest), nn.ConvTranspose2d(dim, dim, 2, 2), nn.Identity(), nn.MaxPool2d(2)]


def _conv(dim: int, width: int, side: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim, width, side, padding=side // 2, bias=False), BatchNorm2d(width), nn.ReLU())


def _to(maps: Tensor, other: Tensor) -> Tensor:
    return F.interpolate(maps, other.shape[-2:], mode="bilinear")

"""The feature pyramid that detection wants, of a network whose maps all have one size."""

from __future__ import annotations

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn


class SimplePyramid(nn.Module):
    """ViTDet's simple feature pyramid (Li et al. 2022, arXiv 2203.16527, section 3; detectron2's ``vit.py``).

    Four maps from the last one alone, at 4, 2, 1 and 1/2 times its resolution: of a patch of 16 pixels, strides 4, 8,
    16 and 32. Its weights are trained with the head, so it belongs to the head and not to the backbone.

    Args:
        dim: Channels of the last map, a multiple of 4.
        out_dim: Channels of each map of the pyramid.

    Example:
        >>> import torch
        >>> [tuple(m.shape) for m in SimplePyramid(96, 64)(torch.zeros(1, 96, 4, 6))]
        [(1, 64, 16, 24), (1, 64, 8, 12), (1, 64, 4, 6), (1, 64, 2, 3)]
    """

    def __init__(self, dim: int, out_dim: int = 256) -> None:
        super().__init__()
        twice = nn.ConvTranspose2d(dim, dim // 2, 2, 2), LayerNorm2d(dim // 2), nn.GELU()
        scales = [
            [*twice, nn.ConvTranspose2d(dim // 2, dim // 4, 2, 2), *_out(dim // 4, out_dim)],
            [nn.ConvTranspose2d(dim, dim // 2, 2, 2), *_out(dim // 2, out_dim)],
            _out(dim, out_dim),
            [nn.MaxPool2d(2, 2), *_out(dim, out_dim)],
        ]
        self.scales = nn.ModuleList(nn.Sequential(*layers) for layers in scales)

    def forward(self, last: Tensor) -> list[Tensor]:
        """(B, dim, H, W), the last of ``Backbone.feature_maps``, to four maps (B, out_dim, ...), the finest first."""
        return [scale(last) for scale in self.scales]


def _out(dim: int, out_dim: int) -> list[nn.Module]:
    """A 1x1 and a 3x3 convolution, each with its norm."""
    first = nn.Conv2d(dim, out_dim, 1, bias=False), LayerNorm2d(out_dim)
    return [*first, nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False), LayerNorm2d(out_dim)]

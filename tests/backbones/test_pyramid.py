"""The feature pyramid of plain vision transformers."""

from __future__ import annotations

import torch

from ssl_bench.backbones import build_backbone
from ssl_bench.backbones.pyramid import SimplePyramid


def test_four_scales_of_the_last_map() -> None:
    backbone = build_backbone("vit_micro_patch8_32")
    (last,) = backbone.feature_maps(torch.randn(2, 3, 32, 32))
    pyramid = SimplePyramid(backbone.embed_dim, 16)
    maps = pyramid(last)
    assert [tuple(found.shape) for found in maps] == [(2, 16, side, side) for side in (16, 8, 4, 2)]
    sum(found.sum() for found in maps).backward()
    assert all(p.grad is not None for p in pyramid.parameters())


def test_as_many_parameters_as_detectron2() -> None:
    """ViT-B: 768 channels, 256 out; deconvolutions with bias, convolutions without, layer norms over channels."""
    up4 = 768 * 384 * 4 + 384 + 2 * 384 + 384 * 192 * 4 + 192
    up2 = 768 * 384 * 4 + 384
    out = [dim * 256 + 256 * 256 * 9 + 4 * 256 for dim in (192, 384, 768, 768)]
    assert sum(p.numel() for p in SimplePyramid(768).parameters()) == up4 + up2 + sum(out)

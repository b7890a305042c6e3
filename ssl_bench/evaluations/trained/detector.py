"""Mask R-CNN (He et al., ICCV 2017) of torchvision on an encoder: what `detection` trains."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from ssl_bench.backbones.pyramid import SimplePyramid
from ssl_bench.evaluations.dense import RAW_PATCH, feature_maps

ANCHOR = 8  # strides of a map that the side of its anchors takes (ViTDet: 32 pixels at stride 4)


class Pyramid(nn.Module):
    """Maps of an encoder with falling resolution and equal channels: what torchvision calls a backbone.

    Of an encoder of one stage ViTDet's simple pyramid (Li et al. 2022, arXiv:2203.16527), of one with several a feature
    pyramid network on its stages; with a coarser map for the largest proposals.

    Args:
        network: A ``Backbone``.
        channels: Of every map.
        frozen: Whether the encoder is left as it is, in eval mode.
    """

    def __init__(self, network: nn.Module, channels: int, frozen: bool) -> None:
        super().__init__()
        backbone: Any = network
        self.network, self.out_channels, self.frozen = network.requires_grad_(not frozen), channels, frozen
        several = backbone.can_train and len(backbone.stages) > 1
        self.blocks: Sequence[int] = backbone.last_blocks if several else ()
        with torch.no_grad():
            seen = feature_maps(network, torch.zeros(1, 3, *backbone.image_size), self.blocks)
        dims = [each.shape[1] for each in seen]
        self.fpn = FeaturePyramidNetwork(dims, channels) if several else SimplePyramid(dims[0], channels)
        rows = [each.shape[2] for each in seen] if several else [seen[0].shape[2] * k / 2 for k in (8, 4, 2, 1)]
        self.strides = [backbone.image_size[0] / each for each in rows]  # pixels, without that of the coarser map

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """(B, 3, H, W) normalised -> "0", "1", ...: (B, channels, rows, columns), the finest first."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = feature_maps(self.network, images, self.blocks)
        found = list(self.fpn(OrderedDict(enumerate(maps))).values()) if self.blocks else self.fpn(maps[0])
        return OrderedDict((str(i), each) for i, each in enumerate([*found, F.max_pool2d(found[-1], 1, 2, 0)]))

    def train(self, mode: bool = True) -> Pyramid:
        """A frozen encoder stays in eval mode: no drop path."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self


def detector(
    network: nn.Module,
    classes: int,
    *,
    frozen: bool,
    channels: int,
    hidden: int,
    mask_layers: int,
    proposals: int,
    sampled: int,
    sides: tuple[int, int],
) -> MaskRCNN:
    """An untrained Mask R-CNN on an encoder, which is taken over.

    Args:
        network: A ``Backbone``.
        classes: With the background.
        frozen: Whether the encoder is.
        channels: Of the maps and of the mask head.
        hidden: Width of the box head's two layers.
        mask_layers: Convolutions of the mask head.
        proposals: That are looked at, of an image.
        sampled: Of them that the heads learn from, of an image.
        sides: To which images are resized: the short side, unless the long one then were longer than that.
    """
    backbone: Any = network
    pyramid = Pyramid(network, channels, frozen)
    names = [str(i) for i in range(len(pyramid.strides))]
    anchors = [ANCHOR * stride for stride in (*pyramid.strides, 2 * pyramid.strides[-1])]
    side = backbone.cell if backbone.can_train else RAW_PATCH
    return MaskRCNN(
        pyramid,
        min_size=sides[0],
        max_size=sides[1],
        image_mean=list(backbone.mean),
        image_std=list(backbone.std),
        size_divisible=2 * side if backbone.multi_crop else backbone.image_size[0],
        rpn_anchor_generator=AnchorGenerator(tuple((each,) for each in anchors), ((0.5, 1.0, 2.0),) * len(anchors)),
        rpn_pre_nms_top_n_train=proposals,
        rpn_pre_nms_top_n_test=proposals,
        rpn_post_nms_top_n_train=proposals,
        rpn_post_nms_top_n_test=proposals,
        box_roi_pool=MultiScaleRoIAlign(names, 7, 2),
        box_head=TwoMLPHead(channels * 7**2, hidden),
        box_predictor=FastRCNNPredictor(hidden, classes),
        box_batch_size_per_image=sampled,
        mask_roi_pool=MultiScaleRoIAlign(names, 14, 2),
        mask_head=MaskRCNNHeads(channels, [channels] * mask_layers, 1),
        mask_predictor=MaskRCNNPredictor(channels, channels, classes),
    )

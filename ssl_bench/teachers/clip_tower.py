"""The image tower of the suite's CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ssl_bench.backbones import build_backbone
from ssl_bench.backbones.backbone import Backbone
from ssl_bench.utils.bounds import Width


class CLIPTower(nn.Module):
    """The image tower of the suite's CLIP: features before its projection, tokens after it.

    Args:
        backbone: The encoder.
        projection: Into the joint space, without bias.
    """

    def __init__(self, backbone: Backbone, projection: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.projection = backbone, projection
        self.name, self.image_size = f"clip_{backbone.name}", backbone.image_size
        self.embed_dim = backbone.embed_dim
        self.poolings, self.mean, self.std = backbone.poolings, backbone.mean, backbone.std

    @property
    def spec(self) -> dict[str, Any]:
        """What ``build_clip_tower`` makes a tower of this shape from."""
        return {**self.backbone.spec, "name": self.name, "out_dim": self.projection.out_features}

    def patches(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, L, out_dim): patch tokens through the final norm and the projection, as EVA uses CLIP."""
        return self.projection(self.backbone(images).patches)

    def features(self, images: Tensor, poolings: Sequence[str]) -> dict[str, Tensor]:
        """The backbone's, as in the paper's linear probes (appendix A.3)."""
        return self.backbone.features(images, poolings)


def build_clip_tower(name: str, *, out_dim: Width, **backbone_options: Any) -> CLIPTower:
    """The tower that an encoder file describes: ``clip_BACKBONE``, its joint space, and the backbone's options."""
    backbone = build_backbone(name.removeprefix("clip_"), **backbone_options)
    return CLIPTower(backbone, nn.Linear(backbone.embed_dim, out_dim, bias=False))

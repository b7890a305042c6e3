"""The raw-pixels baseline as a backbone without weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone, Stage, Tokens
from ssl_bench.backbones.names import check_size
from ssl_bench.utils.errors import unknown

LARGEST = 32  # pixels of the side of the image that is the feature


class Pixels(Backbone):
    """The image itself: every pixel is a token of three channels. The feature is the image at no more than 32 x 32.

    Args:
        name: ``pixels_32``, ``pixels_32x64`` (height x width).

    Raises:
        UserError: Another name.
    """

    family = "pixels"
    can_train = False
    multi_crop = True
    mask_token = None

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.image_size = name, parse_name(name)
        self.cell, self.embed_dim = 1, 3
        self.stages = (Stage(1, 3, 1),)

    @classmethod
    def check_name(cls, name: str) -> None:
        """See ``parse_name``."""
        parse_name(name)

    @classmethod
    def patterns(cls) -> dict[str, dict[str, Any]]:
        """Any image size."""
        return {"pixels_{IMAGE}": {"width": 3, "blocks": 0}}

    @property
    def poolings(self) -> tuple[str, ...]:
        """The pixels."""
        return ("pixels",)

    def forward(
        self, images: Tensor, mask: Tensor | None = None, keep: Tensor | None = None, swap: Tensor | None = None
    ) -> Tokens:
        """The pixels as tokens, and their mean."""
        assert mask is None and keep is None and swap is None, "pixels are neither masked, dropped nor exchanged"
        patches = images.flatten(2).transpose(1, 2)
        return Tokens(patches.mean(dim=1), patches)

    def block_tokens(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """The pixels, of which alone there is a block."""
        return [self(images) for _ in blocks]

    def features(self, images: Tensor, poolings: Sequence[str]) -> dict[str, Tensor]:
        """``{"pixels": (B, 3 * s * s)}`` with s = min(32, side): larger images are averaged down."""
        images = images.float()
        if images.shape[-1] > LARGEST:
            images = F.interpolate(images, size=(LARGEST, LARGEST), mode="bilinear", antialias=True)
        return {"pixels": images.flatten(1)}

    @property
    def layer_ids(self) -> dict[str, int]:
        """There are no parameters."""
        return {}

    def block_modules(self) -> Sequence[nn.Module]:
        """Nothing is done to the pixels."""
        return [nn.Identity()]


def parse_name(name: str) -> tuple[int, int]:
    """Image height and width of ``pixels_{IMAGE}``.

    Example:
        >>> parse_name("pixels_32x64")
        (32, 64)
    """
    match = re.fullmatch(r"pixels_([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", name)
    if not match:
        raise unknown("backbone", name, Pixels.patterns())
    size = int(match[1]), int(match[2] or match[1])
    check_size(name, size, min(size))
    return size

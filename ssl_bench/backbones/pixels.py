"""The raw-pixels baseline as an encoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class Pixels(nn.Module):
    """The raw-pixels baseline: an encoder without weights. Its feature is the image at no more than 32 x 32 pixels."""

    poolings = ("pixels",)
    mask_token = None

    def __init__(self, name: str) -> None:
        super().__init__()
        size = int(name.removeprefix("pixels_"))
        self.name, self.image_size, self.patch_size = name, (size, size), 1
        self.spec = {"name": name}

    def features(self, images: Tensor, poolings: Sequence[str]) -> dict[str, Tensor]:
        """``{"pixels": (B, 3 * s * s)}`` with s = min(32, side): larger images are averaged down."""
        images = images.float()
        if images.shape[-1] > 32:
            images = F.interpolate(images, size=(32, 32), mode="bilinear", antialias=True)
        return {"pixels": images.flatten(1)}

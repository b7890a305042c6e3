"""A backbone of yours: a small convolutional network for methods that train it and for every evaluation.

    ssl-bench bench quick --methods moco_v3 --backbone examples/backbone.py:SmallConv
    ssl-bench evaluate runs/.../encoder.pt --backbone examples/backbone.py:SmallConv

The keywords of the constructor are keys of recipes: ``--set width=64``. Files and rows hold the name of the class and
a hash of this file, never its place, so a command that reads such an encoder names the file again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ssl_bench import Backbone, Stage, Tokens


class SmallConv(Backbone):
    """Convolutions that halve the image, one a block, and tokens of the last map.

    Args:
        name: Given by whoever builds it.
        side: Height and width of its images, pixels.
        width: Channels.
        blocks: Convolutions.
    """

    def __init__(self, name: str, *, side: int = 32, width: int = 32, blocks: int = 3) -> None:
        super().__init__()
        self.name, self.image_size, self.embed_dim = name, (side, side), width
        self.cell, self.mask_token = 2**blocks, None
        self.stages = tuple(Stage(1, width, 2 ** (i + 1)) for i in range(blocks))
        widths = [3] + [width] * blocks
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(1, b), nn.GELU())
            for a, b in pairwise(widths)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self, images: Tensor, mask: Tensor | None = None, keep: Tensor | None = None, swap: Tensor | None = None
    ) -> Tokens:
        """Tokens of the last map; a network without masks is never given any."""
        return self.block_tokens(images, [self.depth])[0]

    def block_tokens(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """Tokens after single blocks, those of the last one through the norm."""
        found = []
        for at, block in enumerate(self.blocks, start=1):
            images = block(images)
            if at in blocks:
                patches = images.flatten(2).transpose(1, 2)
                patches = self.norm(patches) if at == self.depth else patches
                found.append(Tokens(patches.mean(dim=1), patches))
        return found

    @property
    def layer_ids(self) -> dict[str, int]:
        """Layer of every parameter, for layer-wise learning rates."""
        parts = {name: name.split(".") for name, _ in self.named_parameters()}
        return {name: int(at[1]) + 1 if at[0] == "blocks" else self.last_layer for name, at in parts.items()}

    def block_modules(self) -> Sequence[nn.Module]:
        """The blocks in order."""
        return list(self.blocks)

"""Data of yours: a function that returns training and test images, as torch-style data sets.

    ssl-bench bench quick --data examples/data.py:stripes --methods mae --seeds 0

An item is an image (of PIL, or uint8: an array (H, W, 3), a tensor (3, H, W)) and its class, a whole number.
``targets`` spares reading every image for its class, ``classes`` names them. Where there are no test images, return
None instead: 20 % are held out.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


class Stripes:
    """Stripes in one of four directions, drawn from a seed."""

    classes = ("vertical", "horizontal", "rising", "falling")

    def __init__(self, count: int, seed: int) -> None:
        self.seed, self.targets = seed, [index % 4 for index in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        label, random = self.targets[index], np.random.default_rng([self.seed, index])
        y, x = np.mgrid[:32, :32]
        along = (x, y, x + y, x - y)[label]
        wave = np.sin(along / random.uniform(1, 3) + random.uniform(0, 6))[..., None]
        pixels = 128 + 60 * wave * random.uniform(-1, 1, 3) + random.normal(0, 30, (32, 32, 3))
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), label


def stripes() -> tuple[Stripes, Stripes]:
    """Training and test images."""
    return Stripes(2000, seed=0), Stripes(400, seed=1)

"""A network and images small enough for any test."""

from __future__ import annotations

import torch

from ssl_bench.backbones.vit import SIZES
from ssl_bench.data.datasets import ImageSet

SIZES["vit_nano"] = (24, 2, 2)  # for tests alone
NANO = "vit_nano_patch4_16"


def blobs(n: int, split: str, seed: int) -> ImageSet:
    """Images of three classes that differ in the colour of a square at a random place."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randint(0, 60, (n, 3, 16, 16), generator=generator, dtype=torch.uint8)
    at = torch.randint(0, 8, (n, 2), generator=generator).tolist()
    for i, (y, x) in enumerate(at):
        images[i, labels[i], y : y + 8, x : x + 8] = 220
    return ImageSet("blobs", split, labels, ("red", "green", "blue"), f"{seed + n:064x}", images)

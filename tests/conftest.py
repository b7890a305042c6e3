"""Tiny data and networks that every test shares. Tests never download anything."""

from __future__ import annotations

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the suite promises the same rows on a CPU; GPU tests ask for one

import pytest
import torch

from ssl_bench.backbone import SIZES, Backbone
from ssl_bench.data import ImageSet, Splits

torch.set_num_threads(1)
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


@pytest.fixture(scope="session")
def tiny_data() -> Splits:
    """48 training and 24 test images of 16 px."""
    return Splits(blobs(48, "train", 0), blobs(24, "test", 1))


@pytest.fixture
def nano() -> Backbone:
    """A 2-block backbone for 16 px images, always the same weights."""
    torch.manual_seed(0)
    return Backbone(NANO)

"""Tiny data and networks that every test shares. Tests never download anything."""

from __future__ import annotations

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the suite promises the same rows on a CPU; GPU tests ask for one
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start: each worker has one core

import pytest
import torch
from row_fixtures import add_row as add_row
from tiny import NANO, blobs

from ssl_bench.backbones.vit import ViT
from ssl_bench.data.datasets import Splits

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data() -> Splits:
    """48 training and 24 test images of 16 px."""
    return Splits(blobs(48, "train", 0), blobs(24, "test", 1))


@pytest.fixture
def nano() -> ViT:
    """A 2-block backbone for 16 px images, always the same weights."""
    torch.manual_seed(0)
    return ViT(NANO)

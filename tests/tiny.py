"""A network and images small enough for any test."""

from __future__ import annotations

import inspect
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ssl_bench.backbones import eva02, hiera, igpt, swin, vit
from ssl_bench.config.method_facts import method_facts
from ssl_bench.config.recipe import FROM_DATA, resolve_method
from ssl_bench.data.datasets import ImageSet

# Sizes for tests alone: 24 channels come out of each. swin_nano_patch2_window2_16 has 4 x 4 cells, hiera_nano_32 too.
vit.SIZES["vit_nano"] = (24, 2, 2)
eva02.SIZES["eva02_nano"] = (24, 2, 2, False)
swin.SIZES["swin_nano"] = (12, (2, 2), (1, 2))
hiera.SIZES["hiera_nano"] = (6, 1, (1, 1, 1))
igpt.SIZES["igpt_nano"] = (24, 2, 2)
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


def tiny_settings(method: str) -> dict[str, Any]:
    """The recipe keys that make a method small, its teachers' recipes included."""
    settings = {key: value for key, value in method_facts(method).tiny.items() if key not in FROM_DATA}
    cls = resolve_method(method)[1]
    for keyword in cls.teachers:
        teacher = inspect.signature(cls).parameters[keyword].default.split(":")[0]
        settings[keyword] = f"{teacher}:{tiny_recipe(teacher)}"
    return settings


@cache
def tiny_recipe(teacher: str) -> str:
    """The file of a recipe that trains a teacher in seconds."""
    path = Path(tempfile.mkdtemp()) / f"{teacher}.yaml"
    training = {"epochs": 1, "batch_size": 8, "warmup_epochs": 0, "base_lr": 1e-3}
    path.write_text(json.dumps(tiny_settings(teacher) | training))
    return str(path)

"""Patches encoded for one image, in percent of those it has: the column of the survey's tables, by counting.

In iBOT's paper they are effective epochs: 3.8367 with ten local crops, 3.1020 with six, as SwAV has.
"""

from __future__ import annotations

from typing import Any

import pytest

from ssl_bench.config.build import build_with_teachers
from ssl_bench.config.recipe import load_recipe
from ssl_bench.training.compute import count_step
from ssl_bench.training.without_data import built_without_data

VIT = {"backbone": "vit_nano_patch16_224"}


@pytest.mark.parametrize(
    ("method", "recipe", "given", "trained", "untrained"),
    [
        ("mae", "vit_base_in1k", VIT, 25, 0),
        ("hiera_mae", "hiera_tiny_in1k", {"backbone": "hiera_tiny_224"}, 38.78, 0),  # 19 of 49 units
        ("simmim", "vit_base_in1k", VIT, 100, 0),
        ("maskfeat", "vit_base_in1k", VIT, 100, 0),
        ("mpp", "vit_base_in1k", VIT, 100, 0),
        ("moco_v3", "vit_base_in1k", VIT, 200, 200),
        ("moby", "vit_small_in1k", VIT, 200, 200),
        ("simclr", "vit_base_in1k", VIT, 200, 0),
        ("byol", "vit_base_in1k", VIT, 200, 200),
        ("swav", "vit_base_in1k", VIT, 310.20, 0),
        ("swav", "vit_base_in1k", VIT | {"n_local": 0}, 200, 0),
        ("dino", "vit_small_in1k_300ep", VIT, 346.94, 200),
        ("dino", "vit_small_in1k", VIT, 383.67, 200),
        ("dino", "vit_small_in1k", VIT | {"n_local": 0}, 200, 200),
        ("esvit", "swin_tiny_in1k", VIT, 346.94, 200),
        ("ibot", "vit_small_in1k", VIT, 383.67, 200),
    ],
)
def test_patches_of_the_papers(
    method: str, recipe: str, given: dict[str, Any], trained: float, untrained: float
) -> None:
    small = {"out_dim": 16, "hidden_dim": 8, "bottleneck_dim": 8} if method in ("dino", "esvit", "ibot") else {}
    with built_without_data():
        made = build_with_teachers(load_recipe(method, recipe, given, small), ["a"])
    cost = count_step(made, 2, 1)
    rows, columns = made.backbone.grid
    found = [100 * encoded / (196 if method == "hiera_mae" else rows * columns) for encoded in cost[1:]]
    assert found == pytest.approx([trained, untrained], abs=0.005)

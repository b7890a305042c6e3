"""Every method is compared with the network it started from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ssl_bench.backbones import build_backbone, family_of, keywords
from ssl_bench.config.build import build
from ssl_bench.config.suite import Suite, resolve
from ssl_bench.methods.mpp import MPP
from ssl_bench.results.leaderboard.aggregate import aggregate_rows
from ssl_bench.results.leaderboard.differences import untrained_indices
from ssl_bench.utils.starts import NOT_AT_START, start_of

SUITE = Suite(name="s", data="shapes", backbone="vit_nano_patch4_16", recipe="none")


def test_a_suite_has_each_start_of_its_methods_once() -> None:
    recipes = resolve(replace(SUITE, methods=["mae", "moco_v3", "dino", "ibot"]), [0, 1])
    starts = [(r.seed, start_of(r.backbone)) for r in recipes if r.method == "untrained"]
    assert len(starts) == 6  # MAE's, which is supervised training's too, MoCo v3's and that of DINO and iBOT
    for recipe in recipes:
        if recipe.cls.trains:
            assert starts.count((recipe.seed, start_of(recipe.backbone))) == 1, recipe.method


def test_a_start_has_the_statistics_of_the_images_of_its_method() -> None:
    recipes = resolve(replace(SUITE, methods=["mpp"]), [0])
    inputs = [build(recipe, ["a"]).statistics for recipe in recipes if recipe.method == "untrained"]
    assert MPP.input_statistics in inputs and len(inputs) == 2  # supervised training's are ImageNet's


def test_a_suite_without_a_backbone_takes_that_of_each_recipe() -> None:
    suite = replace(SUITE, backbone="", recipe="quick", methods=["mae", "mae:cifar10"])
    recipes = resolve(suite, [0, 1])
    names = [(r.method, r.backbone["name"], r.seed) for r in recipes if r.method != "supervised"]
    micro, small = "vit_micro_patch8_32", "vit_tiny_patch4_32"
    expected = [("untrained", micro, 0), ("untrained", micro, 1), ("untrained", small, 0), ("untrained", small, 1)]
    expected += [("raw_pixels", micro, 0)]
    assert names == [*expected, ("mae", micro, 0), ("mae", micro, 1), ("mae", small, 0), ("mae", small, 1)]


CHANGED = {
    "drop_path": 0.2,
    "mask_token": True,
    "mask_init": "zeros",
    "patch_gradient": 0.1,
    "resample": "dino",
}
STARTS = [("vit_nano_patch4_16", init) for init in ("timm", "mae", "moco_v3", "dino", "beit")]
STARTS += [("eva02_micro_patch8_32", None), ("swin_micro_patch2_window4_32", None), ("hiera_micro_32", "mae")]
STARTS += [("timm:resnet18_32", None)]


@pytest.mark.parametrize(("name", "init"), STARTS)
def test_options_left_out_of_a_start_change_no_feature(name: str, init: str | None) -> None:
    assert set(CHANGED) == set(NOT_AT_START)
    start = {} if init is None else {"init": init}

    def features(**options: object) -> torch.Tensor:
        torch.manual_seed(0)
        network = build_backbone(name, **start, **options).eval()
        images = torch.randn(2, 3, *network.image_size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            return network.features(images, ["mean"])["mean"]

    for option, value in CHANGED.items():
        if option in keywords(family_of(name)):
            assert torch.equal(features(**{option: value}), features()), option


def test_aggregates_find_their_own_untrained_network(add_row) -> None:  # type: ignore[no-untyped-def]
    def row(method: str, init: str, **options: object) -> object:
        backbone = {"name": "vit_micro_patch8_32", "init": init, **options}
        return add_row(method, 0, [1, 0, 1, 0], backbone=backbone, recipe={"backbone": backbone})

    rows = [
        row("untrained", "mae"),
        row("untrained", "dino"),
        row("dino", "dino", drop_path=0.1),
        row("mae", "mae"),
        row("beit", "beit"),
    ]
    aggregates = aggregate_rows(rows)  # type: ignore[arg-type]
    at = {aggregate.label: index for index, aggregate in enumerate(aggregates)}
    assert set(at) == {"untrained (init mae)", "untrained (init dino)", "dino", "mae", "beit"}
    found = untrained_indices(aggregates)
    assert found[at["dino"]] == at["untrained (init dino)"] and found[at["mae"]] == at["untrained (init mae)"]
    assert found[at["beit"]] is None and found[at["untrained (init mae)"]] is None

"""Every method is compared with the network it started from."""

from __future__ import annotations

import pytest
import torch

from ssl_bench.backbones import build_backbone
from ssl_bench.config.suite import Suite, resolve
from ssl_bench.results.leaderboard.aggregate import aggregate_rows
from ssl_bench.results.leaderboard.differences import untrained_indices
from ssl_bench.utils.starts import start_of

SUITE = Suite(name="s", data="shapes", backbone="vit_nano_patch4_16", recipe="none")


def test_a_suite_has_each_start_of_its_methods_once() -> None:
    recipes = resolve(SUITE, ["mae", "moco_v3", "dino", "ibot"], [0, 1], "shapes")
    starts = [(r.seed, start_of(r.backbone)) for r in recipes if r.method == "untrained"]
    assert len(starts) == 6  # MAE's, which is supervised training's too, MoCo v3's and that of DINO and iBOT
    for recipe in recipes:
        if recipe.cls.trains:
            assert starts.count((recipe.seed, start_of(recipe.backbone))) == 1, recipe.method


@pytest.mark.parametrize("init", ["timm", "mae", "moco_v3", "dino", "beit"])
@pytest.mark.parametrize("option", [{"drop_path": 0.2}, {"mask_token": True}, {"resample": "dino"}])
def test_options_left_out_of_a_start_change_no_feature(init: str, option: dict[str, object]) -> None:
    images = torch.randn(2, 3, 16, 16)

    def features(**options: object) -> torch.Tensor:
        torch.manual_seed(0)
        network = build_backbone("vit_nano_patch4_16", init=init, pos_embed="learned", **options).eval()
        with torch.no_grad():
            return network.features(images, ["mean"])["mean"]

    assert torch.equal(features(**option), features())


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

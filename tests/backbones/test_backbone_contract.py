"""What every family of backbones must do. A new family is tested by a line in ``SMALL``."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from ssl_bench.backbones import BACKBONES, build_backbone, check_needs, family_of, keywords, patterns
from ssl_bench.backbones.backbone import Backbone
from ssl_bench.utils.errors import UserError

# A small backbone of each family, its options, and timm's own model of the same shape where timm has one by a name.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_micro_patch8_32", {"mask_token": True}),
    "eva02": ("eva02_micro_patch8_32", {"mask_token": True}),
    "eva02, sub-norm": ("eva02_micro_patch8_32", {"sub_norm": True}),
    "swin": ("swin_micro_patch2_window4_32", {"mask_token": True}),
    "hiera": ("hiera_micro_32", {}),
    "hiera, pre-training": ("hiera_micro_32", {"pooled_stages": 1}),
    "igpt": ("igpt_micro_patch4_32", {}),
    "igpt, BERT": ("igpt_micro_patch4_32", {"objective": "bert"}),
    "pixels": ("pixels_32", {}),
    "timm": ("timm:test_vit_32", {}),
    "timm, ConvNet": ("timm:resnet18_32", {}),
    "timm, channels last": ("timm:swin_tiny_patch4_window7_224_64", {}),
}
PARAMETERS = {  # specs: timm's models without their classifier
    "vit_tiny_patch16_224": 5_524_416,
    "vit_small_patch16_224": 21_665_664,
    "vit_base_patch16_224": 85_798_656,
    "vit_small_patch8_224": 21_670_272,
    "vit_micro_patch8_32": 467_808,
    "vit_micro_patch4_32": 458_592,
    "timm:swin_tiny_patch4_window7_224": 27_519_354,
    "timm:hiera_tiny_224": 27_141_216,
}


def make(case: str) -> Backbone:
    name, options = SMALL[case]
    torch.manual_seed(0)
    return build_backbone(name, **options).eval()


def images(backbone: Backbone, seed: int = 1) -> Tensor:
    return torch.randn(2, 3, *backbone.image_size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=SMALL)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_family_is_tested() -> None:
    assert {case.split(",")[0] for case in SMALL} == set(BACKBONES)


@torch.no_grad()
def test_what_it_says_is_what_comes_out(case: str) -> None:
    backbone = make(case)
    assert backbone.family == case.split(",")[0] and backbone.version >= 1
    tokens = backbone(images(backbone))
    rows, columns = backbone.grid
    assert tokens.patches.shape == (2, rows * columns, backbone.embed_dim)
    assert tokens.cls.shape == (2, backbone.embed_dim)
    height, width = backbone.image_size
    assert backbone.mask_grid == (height // backbone.cell, width // backbone.cell)
    assert backbone.num_params == sum(v.numel() for k, v in backbone.named_parameters() if k != "mask_token")
    assert all(0 < value < 1 for value in (*backbone.mean, *backbone.std))
    assert (backbone.num_params > 0) == backbone.can_train


@torch.no_grad()
def test_one_forward_pass_serves_all_poolings(case: str) -> None:
    backbone = make(case)
    x = images(backbone)
    together = backbone.features(x, backbone.poolings)
    assert set(together) == set(backbone.poolings)
    for pooling, feature in together.items():
        assert feature.ndim == 2 and len(feature) == 2 and feature.dtype == torch.float32
        torch.testing.assert_close(backbone.features(x, [pooling])[pooling], feature)
    tokens = backbone(x)
    if backbone.has_cls:
        torch.testing.assert_close(together["cls"], tokens.cls)
        torch.testing.assert_close(together["mean"], tokens.patches.mean(dim=1))
    elif backbone.can_train:
        torch.testing.assert_close(together["mean"], tokens.cls)
    with pytest.raises(UserError, match=f"unknown pooling of {backbone.name} 'no such'.*{backbone.poolings[0]}"):
        backbone.pooling_blocks("no such")
    assert ("cls" in backbone.poolings) == backbone.has_cls


@torch.no_grad()
def test_maps_have_the_shapes_of_the_stages(case: str) -> None:
    backbone = make(case)
    x = images(backbone)
    maps = backbone.feature_maps(x)
    assert backbone.last_blocks[-1] == backbone.depth
    for i, (found, stage) in enumerate(zip(maps, backbone.stages, strict=True)):
        assert found.shape == (2, stage.dim, *backbone.grid_of(backbone.image_size, i))
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), backbone(x).patches)
    (first,) = backbone.feature_maps(x, [1])
    assert first.shape[1] == backbone.stages[0].dim


def test_every_parameter_has_a_layer(case: str) -> None:
    backbone = make(case)
    ids = backbone.layer_ids
    assert set(ids) == {name for name, _ in backbone.named_parameters()}
    if ids:
        alone = {backbone.last_layer} if backbone.family == "timm" else set()  # timm counts the norm to the last block
        assert set(ids.values()) | alone == set(range(backbone.last_layer + 1))


def test_it_is_built_again_from_its_spec_and_survives_copies(case: str) -> None:
    backbone = make(case)
    assert set(backbone.spec) == {"name", *keywords(type(backbone))}
    again = build_backbone(**backbone.spec).eval()
    again.load_state_dict(backbone.state_dict(), strict=True)
    x = images(backbone)
    with torch.no_grad():
        for other in (again, copy.deepcopy(backbone)):
            assert other.spec == backbone.spec
            torch.testing.assert_close(other(x), backbone(x), rtol=0, atol=0)


def test_the_same_seed_gives_the_same_weights(case: str) -> None:
    first, second = make(case), make(case)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


@torch.no_grad()
def test_masks(case: str) -> None:
    backbone = make(case)
    rows, columns = backbone.mask_grid
    if "mask" not in type(backbone).abilities(**backbone.spec):
        assert backbone.mask_token is None
        return
    x, mask = images(backbone), torch.zeros(2, rows * columns, dtype=torch.bool)
    torch.testing.assert_close(backbone(x, mask=mask), backbone(x))
    mask[:, -1] = True
    changed = x.clone()
    changed[:, :, -backbone.cell :, -backbone.cell :] = 9.0
    torch.testing.assert_close(backbone(x, mask=mask), backbone(changed, mask=mask))
    assert not torch.allclose(backbone(x).cls, backbone(changed).cls)


@torch.no_grad()
def test_keeps(case: str) -> None:
    backbone = make(case)
    if "keep" not in type(backbone).abilities(backbone.name):
        return
    rows, columns = backbone.mask_grid
    x, every = images(backbone), torch.arange(rows * columns).repeat(2, 1)
    kept, whole = backbone(x, keep=every), backbone(x)
    torch.testing.assert_close(kept.cls, whole.cls)
    side = backbone.grid[0] // rows  # tokens of a cell's side: what is kept comes cell by cell
    cells = whole.patches.unflatten(1, (rows, side, columns, side)).transpose(2, 3).flatten(1, 4)
    torch.testing.assert_close(kept.patches, cells)
    changed = x.clone()
    changed[:, :, -backbone.cell :, -backbone.cell :] = 9.0  # the last cell
    torch.testing.assert_close(backbone(x, keep=every[:, :-1]), backbone(changed, keep=every[:, :-1]))


@torch.no_grad()
def test_swaps(case: str) -> None:
    backbone = make(case)
    if "swap" not in type(backbone).abilities(backbone.name):
        return
    rows, columns = backbone.mask_grid
    x, swap = images(backbone), torch.arange(rows * columns).repeat(2, 1)
    torch.testing.assert_close(backbone(x, swap=swap), backbone(x))
    swap[:, 0] = 1
    side, changed = backbone.cell, x.clone()
    changed[:, :, :side, :side] = x[:, :, :side, side : 2 * side]
    torch.testing.assert_close(backbone(x, swap=swap), backbone(changed))


@torch.no_grad()
def test_other_image_sizes(case: str) -> None:
    backbone = make(case)
    if not backbone.multi_crop:
        return
    size = (backbone.image_size[0] + backbone.cell, backbone.image_size[1])
    rows, columns = backbone.grid_of(size)
    assert backbone(torch.randn(2, 3, *size)).patches.shape == (2, rows * columns, backbone.embed_dim)


@torch.no_grad()
def test_attention_sums_to_less_than_one(case: str) -> None:
    backbone = make(case)
    if not backbone.has_attention:
        with pytest.raises(UserError, match="no attention"):
            backbone.attention(images(backbone))
        return
    maps = backbone.attention(images(backbone))
    assert maps.shape[0] == 2 and maps.shape[2:] == backbone.grid
    assert (maps.sum(dim=(2, 3)) < 1).all() and (maps >= 0).all()


def test_drop_path_of_the_last_blocks_and_no_final_norm(case: str) -> None:
    backbone = make(case)
    if not backbone.can_train:
        return
    with torch.no_grad():
        x = images(backbone)
        before = backbone(x).patches
        backbone.set_drop_path(0.9, last=1)
        torch.testing.assert_close(backbone(x).patches, before)  # in eval mode
        normed = any(name.endswith("norm.weight") and "blocks" not in name for name, _ in backbone.named_parameters())
        backbone.drop_final_norm()
        assert set(backbone.layer_ids) == {name for name, _ in backbone.named_parameters()}
        if normed:
            assert not torch.allclose(backbone(x).patches, before)
    if any("drop_path" in name for name, _ in backbone.named_modules()):
        backbone.train()
        assert any(not torch.equal(backbone(x).patches, backbone(x).patches) for _ in range(20))


def test_abilities_without_building_are_those_of_the_network(case: str) -> None:
    backbone = make(case)
    able = family_of(backbone.name).abilities(**backbone.spec)
    assert ("cls" in able) == backbone.has_cls and ("multi_crop" in able) == backbone.multi_crop
    assert ("train" in able) == backbone.can_train


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        assert build_backbone(name).num_params == count


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "timm:resnet18", "timm:convnext_atto", "timm:hiera_tiny_224"])
def test_state_dicts_are_timms(name: str) -> None:
    ours = build_backbone(name)
    theirs = timm.create_model(name.removeprefix("timm:"), pretrained=False, num_classes=0)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    around = nn.ModuleDict({"backbone": ours})
    assert set(around.state_dict()) == {f"backbone.{key}" for key in theirs.state_dict()}
    around.load_state_dict(around.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match="Missing key"):
        ours.load_state_dict({})


def test_timms_sizes_and_statistics() -> None:
    vit, convnet = build_backbone("timm:test_vit"), build_backbone("timm:resnet18_48x32")
    assert (vit.image_size, vit.mean) == ((160, 160), (0.5, 0.5, 0.5))
    assert convnet.image_size == (48, 32) and convnet.mean == (0.485, 0.456, 0.406)
    assert convnet.multi_crop and not vit.multi_crop


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18", ["unknown backbone 'resnet18'", "vit_small_patch{P}_{IMAGE}", "timm:{MODEL}"]),
        ("timm:resnet19", ["unknown timm model 'resnet19'", "resnet18"]),
        ("timm:test_vit_33", ["timm:test_vit_33", "multiples of 16 pixels"]),
        ("pixels_0", ["pixels_{IMAGE}"]),
    ],
)
def test_wrong_names_say_what_is_valid(name: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        build_backbone(name)
    assert all(word in str(error.value) for word in words)


def test_wrong_options_say_what_is_valid() -> None:
    with pytest.raises(UserError, match=r"unknown option of timm:resnet18 'init'.*drop_path"):
        build_backbone("timm:resnet18", init="mae")


@pytest.mark.parametrize(
    ("name", "options", "needs", "words"),
    [
        ("timm:resnet18", {}, ["keep"], "encodes a subset of its patches; timm:resnet18 does not. Backbones.*vit_base"),
        ("vit_micro_patch8_32", {"mask_token": False}, ["mask"], "does not with mask_token false"),
        ("vit_micro_patch8_32", {"relative_positions": "shared"}, ["multi_crop"], 'relative_positions "shared"'),
        ("timm:test_vit", {}, ["multi_crop"], "takes images of other sizes; timm:test_vit does not"),
        ("pixels_32", {}, ["train"], "has weights to train; pixels_32 does not"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, options: dict[str, Any], needs: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):  # one line
        check_needs("method 'x'", family_of(name), {"name": name, **options}, needs)


def test_all_names_are_listed() -> None:
    assert {facts["family"] for facts in patterns().values()} == set(BACKBONES)


def test_no_family_is_named_outside_the_folder() -> None:
    """Whoever uses a backbone asks for what it can do, not for what it is."""
    classes = "|".join({cls.__name__ for cls in BACKBONES.values()})
    files = "|".join({cls.__module__.rpartition(".")[2] for cls in BACKBONES.values()})
    named = re.compile(
        rf"backbones\.({files})\b|\b({classes})\(|isinstance\([^)]*\b({classes})\b|\.grid_size|\.blocks\["
    )
    package = Path(__file__).parents[2] / "ssl_bench"
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in package.rglob("*.py")
        if path.parent.name != "backbones"
        for line in path.read_text().splitlines()
        if named.search(line)
    ]
    assert not found

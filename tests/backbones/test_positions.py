"""Position tables: the worked numbers of MAE's, MoCo v3's and DINO's code."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ssl_bench.backbones import options_for
from ssl_bench.backbones.positions import resample_positions, sincos_position_embedding
from ssl_bench.backbones.vit import ViT
from ssl_bench.methods import METHODS

ONE = [0.841471, 0.01, 0.540302, 0.99995]
ZERO = [0.0, 0.0, 1.0, 1.0]
TWO = [0.909297, 0.019999, -0.416147, 0.9998]


@pytest.mark.parametrize("first", ["x", "y"])
def test_sincos_numbers(first: str) -> None:
    table = sincos_position_embedding(8, (3, 3), first=first)
    cells = {(r, c): table[1 + 3 * r + c] for r in range(3) for c in range(3)}
    along, across = [*ONE, *ZERO], [*ZERO, *ONE]
    expected = {
        (0, 0): [*ZERO, *ZERO],
        (0, 1): along if first == "x" else across,
        (1, 0): across if first == "x" else along,
        (2, 2): [*TWO, *TWO],
    }
    assert table[0].abs().sum() == 0  # the cls token has no position
    for cell, values in expected.items():
        torch.testing.assert_close(cells[cell], torch.tensor(values), rtol=0, atol=1e-5)


def test_sincos_sums_of_moco_v3() -> None:
    table = sincos_position_embedding(384, (14, 14), first="y").double()
    assert table.sum().item() == pytest.approx(34713.82, abs=0.01)
    assert table.norm().item() == pytest.approx(193.98969, abs=1e-4)


@pytest.mark.parametrize("rule", ["size", "dino"])
def test_resample_keeps_the_prefix_and_constants(rule: str) -> None:
    table = torch.cat([torch.full((1, 1, 4), 5.0), torch.full((1, 9, 4), 2.0)], dim=1)
    out = resample_positions(table, (3, 3), (4, 5), 1, rule)
    assert out.shape == (1, 21, 4)
    torch.testing.assert_close(out[:, 0], table[:, 0])
    torch.testing.assert_close(out[:, 1:], torch.full((1, 20, 4), 2.0))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("dino", [11.248611, 19.604643, 44.672752, 53.028767]), ("size", [12.125, 20.875, 47.125, 55.875])],
)
def test_learned_tables_are_interpolated_by_either_rule(rule: str, expected: list[float]) -> None:
    table = torch.arange(17 * 4.0).reshape(1, 17, 4)
    new = resample_positions(table, (4, 4), (2, 2), 1, rule)[0]
    assert new[0].tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(new[1:], torch.tensor(expected)[:, None] + torch.arange(4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["sincos_xy", "sincos_yx"])
def test_fixed_tables_are_computed_for_the_new_grid(kind: str) -> None:
    small, large = (ViT(f"vit_nano_patch4_{size}", pos_embed=kind) for size in (16, 24))  # type: ignore[arg-type]
    large.load_state_dict(small.state_dict() | {"pos_embed": large.pos_embed})
    x = torch.randn(2, 3, 24, 24)
    torch.testing.assert_close(small(x).patches, large(x).patches)
    table = sincos_position_embedding(24, (6, 6), kind[-2])[None]
    assert small.pos_embed is not None
    out = resample_positions(small.pos_embed.half(), (4, 4), (6, 6), 1, kind)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), table, rtol=0, atol=1e-3)


def test_each_method_has_its_own_rule() -> None:
    """Of learned tables that of DINO and its heirs is DINO's, all others are interpolated to the size."""
    options = {name: options_for(ViT, cls.backbone_options) for name, cls in METHODS.items()}
    rules = {name: ViT("vit_nano_patch4_16", **wanted).resample for name, wanted in options.items()}
    assert {name for name, rule in rules.items() if rule == "dino"} == {"dino", "ibot", "esvit"}
    assert rules["mae"] == "sincos_xy" and rules["moco_v3"] == "sincos_yx" and rules["eva"] == "size"


def test_local_crops_of_dino_differ_from_the_size_rule() -> None:
    backbone = ViT("vit_nano_patch4_16", pos_embed="learned", init="dino", resample="dino").eval()
    x = torch.randn(1, 3, 8, 8)
    assert backbone.pos_embed is not None
    cells = backbone.pos_embed[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    by_size = F.interpolate(cells, size=(2, 2), mode="bicubic")
    embedded = backbone._embed(x)[0, 1:] - backbone.patch_embed(x).flatten(0, 2)
    assert 1e-4 < (embedded - by_size.flatten(2)[0].T).abs().max() < 0.1

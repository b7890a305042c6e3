"""Backbones against the tables of their papers and of timm: sizes, widths, positions, first weights, multiply-adds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import nn

from ssl_bench.backbones import build_backbone, eva02, hiera, swin
from ssl_bench.backbones.init import init_beit
from ssl_bench.methods.hiera_mae import Fusion
from ssl_bench.training.compute import forward_flops
from ssl_bench.training.without_data import built_without_data

# Parameters without a classifier, beside those of test_families.py and test_backbone_contract.py.
PARAMETERS = {
    "vit_large_patch16_224": 303_301_632,
    "vit_huge_patch14_224": 630_764_800,
    "vit_base_patch8_224": 85_807_872,
    "eva02_tiny_patch14_336": 5_563_584,  # more positions than at 224
    "swin_micro_patch4_window4_64": 566_222,
}


def empty(name: str, **options: Any) -> Any:
    with built_without_data():
        return build_backbone(name, **options)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name: str) -> None:
    assert empty(name).num_params == PARAMETERS[name]


@pytest.mark.parametrize(
    ("size", "name", "count", "gflops"),
    [
        ((24, (2, 2, 2), (1, 2, 4)), "patch2_window4_32", 319_526, 0.0239),
        ((48, (2, 2, 2), (2, 4, 8)), "patch2_window4_32", 1_265_740, 0.0927),
        ((48, (2, 2, 4, 2), (2, 4, 8, 16)), "patch2_window4_32", 6_002_300, 0.1521),
        ((48, (2, 2, 4, 2), (2, 4, 8, 16)), "patch2_window2_32", 6_000_540, None),
        ((48, (2, 2, 4, 2), (2, 4, 8, 16)), "patch4_window4_32", 6_002_492, None),
    ],
)
def test_swins_of_other_sizes(
    size: tuple[Any, ...], name: str, count: int, gflops: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(swin.SIZES, "swin_other", size)
    network = empty(f"swin_other_{name}")
    assert network.num_params == count
    if gflops:
        assert forward_flops(network, (32, 32)) / 1e9 == pytest.approx(gflops, abs=5e-5)


def test_a_wider_small_hiera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hiera.SIZES, "hiera_micro", (48, 1, (1, 2, 2)))
    assert empty("hiera_micro_32").num_params == 1_109_616


@pytest.mark.parametrize(
    ("name", "tokens", "gflops"),
    [
        ("vit_micro_patch8_32", 17, 0.0156),
        ("vit_micro_patch4_32", 65, 0.0581),
        ("eva02_micro_patch8_32", 17, 0.0156),
        ("swin_micro_patch2_window4_32", 0, 0.0419),
        ("swin_micro_patch4_window4_64", 0, 0.0425),
    ],
)
def test_multiply_adds_of_the_laptop_sizes(name: str, tokens: int, gflops: float) -> None:
    """Two for each; the card's of plain transformers leave the products of queries, keys and values out, ours count."""
    network = empty(name)
    attention = network.depth * 4 * tokens**2 * network.embed_dim
    found = (forward_flops(network, network.image_size) - attention) / 1e9
    assert found == pytest.approx(gflops, abs=5e-5)


# Swin -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "layers"), [("tiny", 14), ("base", 26)])
def test_layers_of_swin(name: str, layers: int) -> None:
    ids = empty(f"swin_{name}_patch4_window7_224").layer_ids
    assert set(ids.values()) == set(range(layers))


def test_the_linear_feature_of_esvit_is_2304_wide() -> None:
    """The last four blocks of a Swin-T, averaged: 384 + 384 + 768 + 768."""
    network = empty("swin_tiny_patch4_window7_224")
    with torch.no_grad():
        found = network.features(torch.empty(1, 3, 224, 224, device="meta"), ["last4", "mean"])
    assert found["last4"].shape == (1, 2304) and found["mean"].shape == (1, 768)


def test_tables_and_norms_of_swin() -> None:
    """A window of 14 has 27^2 relative places, one of 7 13^2, to which the last stage falls back."""
    network = empty("swin_tiny_patch4_window14_224")
    rows = [len(block.attn.relative_position_bias_table) for block in network.block_modules()]
    assert rows == [729] * 10 + [169] * 2
    assert network.norm.eps == 1e-5 and empty("hiera_tiny_224").head.norm.eps == 1e-6


# Hiera ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pooled", "tokens", "last"), [(3, 49, 7), (2, 196, 14)])
def test_tokens_of_hiera(pooled: int, tokens: int, last: int) -> None:
    network, image = empty("hiera_tiny_224", pooled_stages=pooled), torch.empty(1, 3, 224, 224, device="meta")
    with torch.no_grad():
        assert network(image).patches.shape == (1, tokens, 768)
        shapes = [tuple(each.shape[1:]) for each in network.feature_maps(image)]
    assert shapes == [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, last, last)]


def test_blocks_of_hiera_in_pre_training() -> None:
    """Width in and out, heads, stride of the queries, window, and whether attention stays within a unit."""
    blocks = empty("hiera_tiny_224", pooled_stages=2).block_modules()
    found = [
        (b.dim, b.dim_out, b.attn.heads, b.attn.q_stride, b.attn.window_size, b.attn.use_mask_unit_attn) for b in blocks
    ]
    # The window is that of attention within units, and means nothing to a block that attends to everything.
    assert found[:4] == [
        (96, 96, 1, 1, 64, True),
        (96, 192, 2, 4, 16, True),
        (192, 192, 2, 1, 16, True),
        (192, 384, 4, 4, 4, True),
    ]
    assert found[4:10] == [(384, 384, 4, 1, 4, False)] * 6
    assert [each[:4] for each in found[10:]] == [(384, 768, 8, 1), (768, 768, 8, 1)]
    assert not any(each[5] for each in found[10:])


@pytest.mark.parametrize("init", ["hiera", "mae"])
def test_biases_of_hieras_patches_start_as_torchs(init: str) -> None:
    """Of a convolution of 3 x 3 x 3: up to 1 / sqrt(27); of 7 x 7 x 3 it would be 1 / sqrt(147)."""
    torch.manual_seed(0)
    network: Any = build_backbone("hiera_micro_32", init=init)
    assert 0.7 * 27**-0.5 < network.patch_embed.proj.bias.abs().max().item() <= 27**-0.5


def test_first_weights_of_the_fusion_are_torchs() -> None:
    torch.manual_seed(0)
    first: Any = Fusion([96, 192, 384, 768]).heads[0]
    assert first.weight.shape == (768, 96, 4, 4) and first.weight.std().item() == pytest.approx(0.0147, abs=1e-4)


# EVA-02, BEiT and EVA -------------------------------------------------------------------------------------------------


def test_rotary_positions_of_a_network_of_2_x_2_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(eva02.SIZES, "eva02_toy", (8, 1, 1, False))
    network: Any = build_backbone("eva02_toy_patch4_8")
    table = network.rope.get_embed(shape=[2, 2])
    cosines = table.chunk(2, dim=-1)[1]
    near = [0.5403023, 0.5403023, 0.99995, 0.99995]
    torch.testing.assert_close(cosines[1], torch.tensor([1, 1, 1, 1, *near]), rtol=0, atol=1e-6)
    torch.testing.assert_close(cosines[2], torch.tensor([*near, 1, 1, 1, 1]), rtol=0, atol=1e-6)
    x = torch.arange(1.0, 9) + 10 * torch.arange(4.0)[:, None]
    expected = [
        [1, 2, 3, 4, 5, 6, 7, 8],
        [11, 12, 13, 14, -5.3590002, 21.2669029, 16.8191528, 18.1690960],
        [-7.1660128, 29.5575409, 22.7588539, 24.2287960, 25, 26, 27, 28],
        [-10.1776981, 43.3752747, 32.6583557, 34.3282928, -11.3823719, 48.9023666, 36.6181564, 38.3680954],
    ]
    found = apply_rot_embed_cat(x[None, None], table)[0, 0]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-5)
    pairs = found.unflatten(1, (4, 2)).norm(dim=2)
    torch.testing.assert_close(pairs, x.unflatten(1, (4, 2)).norm(dim=2))  # turned, not stretched


def test_products_of_rotated_tokens_depend_on_their_distance_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(eva02.SIZES, "eva02_toy", (8, 1, 1, False))
    network: Any = build_backbone("eva02_toy_patch4_16")
    q, k = torch.randn(2, 1, 8).expand(2, 16, 8)
    table = network.rope.get_embed(shape=[4, 4])
    products = apply_rot_embed_cat(q[None, None], table)[0, 0] @ apply_rot_embed_cat(k[None, None], table)[0, 0].T
    by_distance: dict[tuple[int, int], list[float]] = {}
    for i in range(16):
        for j in range(16):
            by_distance.setdefault((i // 4 - j // 4, i % 4 - j % 4), []).append(products[i, j].item())
    assert len(by_distance) == 49
    assert all(each == pytest.approx([each[0]] * len(each), abs=1e-5) for each in by_distance.values())
    assert max(each[0] for each in by_distance.values()) - min(each[0] for each in by_distance.values()) > 0.01


def test_rotary_positions_of_another_grid_are_rescaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 2 x 2 to 4 x 4: places 0, 0.5, 1 and 1.5."""
    monkeypatch.setitem(eva02.SIZES, "eva02_toy", (8, 1, 1, False))
    network: Any = build_backbone("eva02_toy_patch4_16", rope_grid=2)
    cosines = network.rope.get_embed(shape=[4, 4]).chunk(2, dim=-1)[1]
    assert cosines[:4, 4].tolist() == pytest.approx([1, 0.8775826, 0.5403023, 0.0707372], abs=1e-6)


@pytest.mark.parametrize(("size", "hidden"), [("tiny", 512), ("small", 1024), ("base", 2048), ("large", 2730)])
def test_hidden_widths_of_eva02(size: str, hidden: int) -> None:
    network = empty(f"eva02_{size}_patch14_224")
    assert network.blocks[0].mlp.fc2.in_features == hidden
    assert network.grid == (16, 16)


def test_table_of_relative_positions_of_beit() -> None:
    network = empty("vit_base_patch16_224", relative_positions="shared", pos_embed="none")
    assert network.rel_pos_bias.relative_position_bias_table.shape == (732, 12)


def test_truncation_at_one_sigma_leaves_a_deviation_of_0_54() -> None:
    """0.02 is BEiT's and EVA's default; EVA's ViT-g has 0.015."""
    network: Any = build_backbone("vit_micro_patch8_32")
    for std, left in ((0.02, 0.0108), (0.015, 0.00807)):
        torch.manual_seed(0)
        init_beit(network, std)
        weight: nn.Parameter = network.blocks[0].mlp.fc1.weight
        assert weight.std().item() == pytest.approx(left, rel=0.01) and weight.abs().max() <= std

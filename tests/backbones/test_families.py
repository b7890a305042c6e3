"""Swin, Hiera and EVA-02 behind the contract: timm's keys and numbers, the papers' masks, what a family refuses."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat, build_rotary_pos_embed
from timm.models.hiera import Hiera as TimmHiera
from torch import Tensor

from ssl_bench.backbones import build_backbone, family_of
from ssl_bench.backbones.hiera import Hiera
from ssl_bench.backbones.swin import Swin
from ssl_bench.utils.errors import UserError

MICRO = ("swin_micro_patch2_window4_32", "hiera_micro_32", "eva02_micro_patch8_32")
PARAMETERS = {  # of timm's models without a classifier
    "swin_tiny_patch4_window7_224": 27_519_354,
    "swin_tiny_patch4_window14_224": 27_569_754,
    "swin_small_patch4_window7_224": 48_837_258,
    "swin_small_patch4_window14_224": 48_968_298,
    "swin_base_patch4_window7_224": 86_743_224,
    "swin_base_patch4_window14_224": 86_917_944,
    "swin_large_patch4_window7_224": 194_995_476,
    "swin_micro_patch2_window4_32": 565_070,
    "hiera_tiny_224": 27_141_216,
    "hiera_small_224": 34_239_072,
    "hiera_base_224": 50_755_968,
    "hiera_base_plus_224": 68_999_616,
    "hiera_large_224": 212_586_912,
    "hiera_huge_224": 670_730_752,
    "hiera_micro_32": 498_080,
    "eva02_tiny_patch14_224": 5_502_144,
    "eva02_small_patch14_224": 21_621_120,
    "eva02_base_patch14_224": 85_758_720,
    "eva02_large_patch14_224": 303_268_800,
    "eva02_micro_patch8_32": 467_936,
}


def photos(n: int = 2, side: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def made(name: str, seed: int = 0, **options: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_backbone(name, **options).eval()


@pytest.mark.parametrize("name", PARAMETERS)
def test_as_many_parameters_as_timm(name: str) -> None:
    with torch.device("meta"):
        assert build_backbone(name).num_params == PARAMETERS[name]


def test_separate_matrices_of_eva02() -> None:
    assert made("eva02_micro_patch8_32", sub_norm=True).num_params == 469_984


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swin_tiny_patch4_window7_224", {}),
        ("hiera_tiny_224", {}),
        ("eva02_tiny_patch14_224", {"global_pool": ""}),
        ("eva02_base_patch14_224", {"global_pool": ""}),
    ],
)
def test_keys_are_those_of_timm(name: str, options: dict[str, str]) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0, **options).state_dict()
        ours = build_backbone(name).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("name", MICRO)
def test_every_parameter_has_a_layer(name: str) -> None:
    backbone = made(name)
    ids = backbone.layer_ids
    assert ids.keys() == dict(backbone.named_parameters()).keys()
    assert set(ids.values()) == set(range(backbone.depth + 2))


def test_merging_goes_with_the_stage_before() -> None:
    ids = made(MICRO[0]).layer_ids
    assert ids["layers.1.downsample.reduction.weight"] == 2 and ids["layers.1.blocks.0.norm1.weight"] == 3
    assert ids["layers.2.downsample.norm.weight"] == 4 and ids["norm.weight"] == 7


@pytest.mark.parametrize("name", MICRO)
def test_geometry_is_that_of_the_small_vit(name: str) -> None:
    backbone, plain = made(name), made("vit_micro_patch8_32")
    assert (backbone.grid, backbone.mask_grid, backbone.cell) == (plain.grid, plain.mask_grid, plain.cell)
    assert backbone(photos()).patches.shape == (2, 16, backbone.embed_dim)
    sizes = [tuple(feature_map.shape[1:]) for feature_map in backbone.feature_maps(photos())]
    assert sizes == [(stage.dim, 32 // stage.stride, 32 // stage.stride) for stage in backbone.stages]


def test_raster_order() -> None:
    swin = made(MICRO[0])
    hiera = made(MICRO[1])
    x = photos()
    torch.testing.assert_close(swin(x).patches.view(2, 4, 4, -1), swin.forward_features(x))
    (last,) = hiera.forward_intermediates(x, indices=[2], intermediates_only=True, output_fmt="NHWC")
    torch.testing.assert_close(hiera(x).patches.view(2, 4, 4, -1), hiera.head.norm(last))
    torch.testing.assert_close(hiera(x).cls, hiera.head.norm(last.flatten(1, 2).mean(1)))


# Swin -----------------------------------------------------------------------------------------------------------------


def test_windows_and_shifts() -> None:
    with torch.device("meta"):
        seven, fourteen = (build_backbone(f"swin_tiny_patch4_window{w}_224") for w in (7, 14))
    assert [block.shift_size[0] for block in seven.block_modules()] == [0, 3, 0, 3, 0, 3, 0, 3, 0, 3, 0, 0]
    assert [block.shift_size[0] for block in fourteen.block_modules()] == [0, 7, 0, 7, *[0] * 8]
    assert [stage.blocks[0].window_size[0] for stage in fourteen.layers] == [14, 14, 14, 7]


def test_nothing_padded_is_timm_exactly_and_padding_comes_before_the_shift() -> None:
    torch.manual_seed(0)
    ours = Swin("swin_micro_patch2_window3_24").eval()  # grids of 12, 6 and 3 tokens
    theirs = timm.models.SwinTransformer(
        img_size=24, patch_size=2, embed_dim=32, depths=(2, 2, 2), num_heads=(1, 2, 4), window_size=3, num_classes=0,
        global_pool="", strict_img_size=False,
    ).eval()  # fmt: skip
    for p in ours.parameters():  # shifted windows and tables must matter
        p.data.add_(torch.randn(p.shape), alpha=0.1)
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        fits, padded = photos(side=24), photos(side=32)  # 16, 8 and 4 tokens: windows of 3 don't divide them
        assert torch.equal(ours(fits).patches, theirs.forward_features(fits).flatten(1, 2))
        assert (ours(padded).patches - theirs.forward_features(padded).flatten(1, 2)).abs().max() > 0.05


def test_a_padded_shifted_block_against_attention_written_out() -> None:
    torch.manual_seed(0)
    block = Swin("swin_micro_patch2_window4_32").layers[1].blocks[1]  # built for 8 x 8, shifted by 2
    assert block.shift_size == (2, 2) and block.window_size == (4, 4)
    for p in block.parameters():
        p.data.normal_(std=0.3)
    side, window, shift, padded = 7, 4, 2, 8
    x = torch.randn(1, side, side, 64)
    whole = torch.zeros(padded, padded, 64)
    whole[:side, :side] = x[0]
    heads, dim = block.attn.num_heads, 64 // block.attn.num_heads
    q, k, v = (t.unflatten(-1, (heads, dim)) for t in block.attn.qkv(whole).chunk(3, dim=-1))
    table = block.attn.relative_position_bias_table  # (2 * 4 - 1)^2 rows
    zone = [0 if t < padded - window else 1 if t < padded - shift else 2 for t in range(padded)]  # of a rolled place
    expected = torch.zeros(side, side, 64)
    for i in range(side):
        for j in range(side):
            at = ((i - shift) % padded, (j - shift) % padded)  # where the token lies after the roll
            scores, values = [], []
            for a in range(padded):
                for b in range(padded):
                    to = ((a - shift) % padded, (b - shift) % padded)
                    if any(s // window != t // window for s, t in zip(at, to, strict=True)):
                        continue
                    same = all(zone[s] == zone[t] for s, t in zip(at, to, strict=True))
                    row = (at[0] - to[0] + window - 1) * (2 * window - 1) + at[1] - to[1] + window - 1
                    score = (q[i, j] * k[a, b]).sum(-1) * dim**-0.5 + table[row] + (0.0 if same else -100.0)
                    scores.append(score)
                    values.append(v[a, b])
            weights = torch.stack(scores).softmax(0)  # (keys, heads)
            expected[i, j] = block.attn.proj((weights[..., None] * torch.stack(values)).sum(0).flatten())
    torch.testing.assert_close(block._attn(x)[0], expected, atol=1e-5, rtol=1e-4)


def test_a_mask_of_cells_hides_their_pixels() -> None:
    swin, x = made(MICRO[0], mask_token=True), photos()
    nothing, some = torch.zeros(2, 16, dtype=torch.bool), torch.zeros(2, 16, dtype=torch.bool)
    some[:, 5] = True
    changed = x.clone()
    changed[:, :, 8:16, 8:16] += 1  # cell 5 of 4 x 4
    torch.testing.assert_close(swin(x, mask=nothing).patches, swin(x).patches)
    assert torch.equal(swin(x, mask=some).patches, swin(changed, mask=some).patches)
    assert not torch.equal(swin(x).patches, swin(changed).patches)


def test_a_cell_is_spread_over_its_patches() -> None:
    with torch.device("meta"):
        swin = build_backbone("swin_tiny_patch4_window7_64")
    spread = swin.spread(torch.tensor([[True, False, False, False]]), (16, 16))
    assert spread[0, :8, :8].all() and spread.sum() == 64


def test_without_attention_a_cell_changes_its_own_token_alone() -> None:
    swin, x = made(MICRO[0]), photos(1)
    for block in swin.block_modules():
        block.attn.proj.weight.data.zero_()
    changed = x.clone()
    changed[:, :, 16:24, 0:8] += 1  # row 2, column 0
    moved = (swin(x).patches - swin(changed).patches).abs().amax(dim=2)[0]
    assert moved.nonzero().flatten().tolist() == [8]


# Hiera ----------------------------------------------------------------------------------------------------------------


def test_units_that_are_kept() -> None:
    hiera, x = made(MICRO[1], pooled_stages=1), photos()
    every = torch.arange(16).expand(2, -1)
    whole = hiera(x)
    units = hiera(x, keep=every).patches.view(2, 4, 4, 2, 2, -1).transpose(2, 3).reshape(2, 64, -1)  # to raster order
    torch.testing.assert_close(units, whole.patches)
    keep = torch.tensor([[9, 0, 5], [15, 3, 2]])
    torch.testing.assert_close(hiera(x, keep=keep).patches, hiera(x, keep=keep.flip(1)).patches)
    assert [tuple(t.shape) for t in hiera.unit_tokens(x, keep)] == [
        (2, 3, 4, 4, 32),
        (2, 3, 2, 2, 64),
        (2, 3, 2, 2, 128),
    ]
    changed = x.clone()
    changed[0, :, 24:, 24:] += 1  # unit 15, which the first image does not keep
    assert torch.equal(hiera(x, keep=keep).patches, hiera(changed, keep=keep).patches)


def test_kept_units_are_those_of_timm() -> None:
    hiera, x = made(MICRO[1], pooled_stages=1), photos()
    keep = torch.tensor([[0, 5, 9], [2, 3, 15]])
    kept = torch.zeros(2, 16, dtype=torch.bool).scatter(1, keep, True)
    _, theirs = TimmHiera.forward_features(Renamed(hiera), x, mask=kept, return_intermediates=True)
    for mine, other in zip(hiera.unit_tokens(x, keep), theirs, strict=True):
        torch.testing.assert_close(mine, other)


class Renamed:
    """timm counts the last blocks of its stages from 0, under the name that its own methods use."""

    def __init__(self, network: Hiera) -> None:
        self.network = network

    def __getattr__(self, name: str) -> object:
        return getattr(self.network, name)


def test_units_of_the_paper() -> None:
    with torch.device("meta"):
        hiera = build_backbone("hiera_tiny_224", pooled_stages=2)
        x, keep = torch.zeros(1, 3, 224, 224), torch.arange(19)[None]
        assert [tuple(t.shape[1:]) for t in hiera.unit_tokens(x, keep)] == [
            (19, 8, 8, 96), (19, 4, 4, 192), (19, 2, 2, 384), (19, 2, 2, 768),
        ]  # fmt: skip
        assert hiera(x, keep=keep).patches.shape == (1, 76, 768)
        assert build_backbone("hiera_tiny_224")(x).patches.shape == (1, 49, 768)


def test_initial_weights_of_hiera() -> None:
    plain, mae = made("hiera_tiny_224"), made("hiera_tiny_224", init="mae")
    weight = plain.blocks[11].attn.proj.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.02) and plain.blocks[0].norm1.bias.eq(0.02).all()
    weight = mae.blocks[11].attn.proj.weight
    assert (
        weight.abs().max().item() == pytest.approx(math.sqrt(6 / (768 + 768)), rel=0.01)
        and mae.blocks[0].norm1.bias.eq(0).all()
    )


# EVA-02 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sub_norm", [False, True])
def test_tokens_are_those_of_timm(sub_norm: bool) -> None:
    eva, x = made(MICRO[2], sub_norm=sub_norm), photos()
    with torch.no_grad():
        torch.testing.assert_close(torch.cat([eva(x).cls[:, None], eva(x).patches], 1), eva.forward_features(x))


def test_kept_patches_bring_their_rotary_positions() -> None:
    eva, x = made(MICRO[2]), photos()
    every = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(eva(x, keep=every).patches, eva(x).patches)
    order = torch.tensor([[3, 1, 8, 15], [0, 2, 9, 4]])
    rising = order.sort(dim=1)
    a, b = eva(x, keep=order), eva(x, keep=rising.values)
    torch.testing.assert_close(a.cls, b.cls)
    torch.testing.assert_close(a.patches.gather(1, rising.indices[..., None].expand(-1, -1, 96)), b.patches)


def test_rotary_positions_by_their_worked_numbers() -> None:
    rope = torch.cat(build_rotary_pos_embed([2, 2], dim=8, in_pixels=False, temperature=10000.0), -1)
    x = torch.arange(1.0, 9) + 10 * torch.arange(4.0)[:, None]
    out = apply_rot_embed_cat(x[None, None], rope)[0, 0]
    expected = torch.tensor([11, 12, 13, 14, -5.3590002, 21.2669029, 16.8191528, 18.1690960])
    torch.testing.assert_close(out[0], x[0])
    torch.testing.assert_close(out[1], expected, atol=1e-5, rtol=0)


def test_initial_weights_of_eva02() -> None:
    plain, scaled = made("eva02_tiny_patch14_224"), made("eva02_tiny_patch14_224", sub_norm=True)
    normal = math.sqrt(2 / (192 + 192))
    assert scaled.blocks[3].attn.q_proj.weight.std().item() == pytest.approx(normal, rel=0.02)
    assert scaled.blocks[3].attn.v_proj.weight.std().item() == pytest.approx(1.7827097 * normal, rel=0.02)
    assert plain.blocks[3].attn.proj.weight.std().item() == pytest.approx(normal, rel=0.02)
    assert plain.pos_embed.abs().max() <= 0.02


def test_a_part_of_the_gradient_reaches_the_patch_embedding() -> None:
    def gradient(factor: float) -> Tensor:
        eva = made(MICRO[2], patch_gradient=factor)
        eva(photos()).patches.square().sum().backward()
        found: Tensor = eva.patch_embed.proj.weight.grad
        return found

    torch.testing.assert_close(gradient(0.1), 0.1 * gradient(1.0), atol=1e-5, rtol=1e-3)


def test_attention_is_what_the_last_block_computes() -> None:
    eva, x = made(MICRO[2]), photos()
    found = eva.attention(x)
    assert found.shape == (2, 3, 4, 4) and (found.sum(dim=(2, 3)) < 1).all()
    block = eva.blocks[-1].attn
    values: list[Tensor] = []
    assert torch.is_grad_enabled()  # a short sequence: attention is not fused, which would show no weights
    block.attn_drop.register_forward_hook(lambda module, args, output: values.append(output))
    eva.forward_features(x)
    torch.testing.assert_close(found.flatten(2), values[-1][:, :, 0, 1:])


# Refusals -------------------------------------------------------------------------------------------------------------


def test_what_a_family_cannot_do_is_refused() -> None:
    swin, hiera, x = made(MICRO[0]), made(MICRO[1]), photos()
    with pytest.raises(UserError, match="neither keep"):
        swin(x, keep=torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(UserError, match="no mask token"):
        hiera(x, mask=torch.zeros(2, 16, dtype=torch.bool))
    with pytest.raises(UserError, match="not 40 x 40"):
        hiera(photos(side=40))
    with pytest.raises(UserError, match="pooling"):
        swin.features(x, ["cls"])


@pytest.mark.parametrize(
    "name",
    ["swin_tiny_patch4_window7_100", "hiera_tiny_100", "eva02_tiny_patch14_100", "swin_tiny_224", "hiera_giant_224"],
)
def test_names_that_build_nothing(name: str) -> None:
    with pytest.raises(UserError):
        family_of(name)

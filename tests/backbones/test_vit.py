"""The backbone against timm itself, and its masks, drops, sizes and poolings."""

from __future__ import annotations

import pytest
import timm
import torch

from ssl_bench.backbones.pixels import Pixels
from ssl_bench.backbones.vit import ViT, parse_name
from ssl_bench.checkpoints.encoder_file import build_encoder
from ssl_bench.utils.errors import UserError

NANO = "vit_nano_patch4_16"


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"])
def test_weights_load_into_timm_and_give_its_tokens(name: str) -> None:
    ours = ViT(name).eval()
    theirs = timm.create_model(name, pretrained=False, num_classes=0).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected, tokens = theirs.forward_features(x), ours(x)
    torch.testing.assert_close(torch.cat([tokens.cls[:, None], tokens.patches], dim=1), expected, rtol=0, atol=1e-5)


def test_keep_all_in_order_changes_nothing(nano: ViT, images: torch.Tensor) -> None:
    keep = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(nano(images, keep=keep), nano(images))


def test_dropped_patches_have_no_influence(nano: ViT, images: torch.Tensor) -> None:
    keep = torch.tensor([[0, 5, 9]]).expand(2, -1)
    changed = images.clone()
    changed[:, :, 12:, 12:] = 9.0  # the last patch, which is not kept
    torch.testing.assert_close(nano(images, keep=keep), nano(changed, keep=keep))
    assert not torch.allclose(nano(images).cls, nano(changed).cls)


def test_masked_patches_are_replaced_and_the_mask_token_learns(images: torch.Tensor) -> None:
    backbone = ViT(NANO, mask_token=True)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, -1] = True
    changed = images.clone()
    changed[:, :, 12:, 12:] = 9.0
    torch.testing.assert_close(backbone(images, mask=mask), backbone(changed, mask=mask))
    backbone(images, mask=mask).cls.sum().backward()
    assert backbone.mask_token is not None and backbone.mask_token.grad is not None
    assert backbone.mask_token.grad.abs().sum() > 0


def test_poolings_come_from_one_forward(nano: ViT, images: torch.Tensor) -> None:
    tokens, calls = nano(images), 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    nano.blocks[0].register_forward_hook(count)
    pooled = nano.features(images, nano.poolings)
    assert calls == 1
    torch.testing.assert_close(pooled["cls"], tokens.cls)
    torch.testing.assert_close(pooled["mean"], tokens.patches.mean(dim=1))
    torch.testing.assert_close(pooled["cls+mean"], torch.cat([tokens.cls, tokens.patches.mean(dim=1)], dim=1))
    torch.testing.assert_close(pooled["layer=2"], pooled["mean"])
    assert pooled["last4"].shape == (2, 48)  # two blocks are all there is
    torch.testing.assert_close(pooled["last4"][:, 24:], tokens.cls)


def test_other_sizes_interpolate_positions(nano: ViT) -> None:
    assert nano(torch.randn(2, 3, 8, 8)).patches.shape == (2, 4, 24)
    assert nano(torch.randn(2, 3, 24, 16)).patches.shape == (2, 24, 24)


def test_grid_that_is_not_square() -> None:
    backbone = ViT("vit_nano_patch4_16x32")
    assert backbone.grid == (4, 8)
    assert backbone(torch.randn(2, 3, 16, 32)).patches.shape == (2, 32, 24)


def test_registers_are_in_neither_cls_nor_patches() -> None:
    backbone = ViT(NANO, registers=3, layer_scale=1e-5)
    tokens = backbone(torch.randn(2, 3, 16, 16))
    assert tokens.patches.shape == (2, 16, 24) and tokens.cls.shape == (2, 24)


def test_attention_of_both_kinds_agrees(nano: ViT, images: torch.Tensor) -> None:
    """Where plain products replace fused attention the result is the same, up to the precision: on a CPU for short
    sequences with a gradient, and in bf16."""
    exact = nano(images).cls
    assert not nano.blocks[0].attn.fused_attn
    with torch.no_grad():
        torch.testing.assert_close(nano(images).cls, exact)
    assert nano.blocks[0].attn.fused_attn
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = nano(images).cls
    assert not nano.blocks[0].attn.fused_attn
    torch.testing.assert_close(half.float(), exact, rtol=0, atol=0.1)


def test_initial_weights_have_the_papers_bounds() -> None:
    moco = ViT("vit_small_patch16_224", init="moco_v3", pos_embed="sincos_yx")
    block = moco.blocks[0]
    assert block.attn.qkv.weight.abs().max().item() == pytest.approx(0.0883883, rel=1e-3)
    assert block.mlp.fc1.weight.abs().max().item() == pytest.approx(0.0559017, rel=1e-3)
    assert moco.patch_embed.proj.weight.abs().max().item() == pytest.approx(0.0721688, rel=1e-3)
    assert moco.patch_embed.proj.bias.abs().max().item() == 0
    mae = ViT("vit_base_patch16_224", init="mae")
    assert mae.blocks[0].attn.qkv.weight.abs().max().item() == pytest.approx(0.0441942, rel=1e-3)
    assert mae.patch_embed.proj.weight.abs().max().item() == pytest.approx(0.0625, rel=1e-3)
    assert 0 < mae.patch_embed.proj.bias.abs().max().item() <= 1 / 768**0.5 + 1e-7


def test_fixed_positions_are_frozen_and_learned_ones_not() -> None:
    assert not ViT(NANO).pos_embed.requires_grad
    assert ViT(NANO, pos_embed="learned").pos_embed.requires_grad


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_tiny_patch5_32", ["patch size 5", "32 x 32", "4, 8"]),
        ("vit_smal_patch16_224", ["vit_smal_patch16_224", "vit_small_patch"]),
        ("resnet50", ["resnet50", "vit_tiny"]),
        ("vit_tiny_patch0_32", ["patch size 0"]),
    ],
)
def test_wrong_names_say_what_is_valid(name: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        parse_name(name)
    assert all(word in str(error.value) for word in words)


def test_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(UserError, match="num_heads 5"):
        ViT(NANO, num_heads=5)


def test_pixels_are_an_encoder_without_weights() -> None:
    pixels = build_encoder({"name": "pixels_16"})
    assert isinstance(pixels, Pixels) and not list(pixels.parameters())
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(pixels.features(x, ["pixels"])["pixels"], x.flatten(1))
    assert Pixels("pixels_64").features(torch.randn(1, 3, 64, 64), ["pixels"])["pixels"].shape == (1, 3 * 32 * 32)


def test_swapped_patches_take_the_embedding_but_not_the_position(nano: ViT, images: torch.Tensor) -> None:
    swap = torch.arange(16).repeat(2, 1)
    swap[:, 0] = 7
    changed = images.clone()
    changed[:, :, :4, :4] = images[:, :, 4:8, 12:16]  # patch 7 stands in the place of patch 0
    torch.testing.assert_close(nano(images, swap=swap), nano(changed))


@pytest.mark.parametrize(
    ("grid", "row", "corner", "length"),
    [
        ((2, 2), [11, 9, 9, 9, 9], 11, 12),
        ((2, 3), [17, 15, 15, 15, 15, 15, 15], 17, 18),
    ],
)
def test_relative_position_index_is_beits(grid: tuple[int, int], row: list[int], corner: int, length: int) -> None:
    backbone = ViT(f"vit_nano_patch4_{4 * grid[0]}x{4 * grid[1]}", relative_positions="shared", pos_embed="none")
    index = backbone.rel_pos_bias.relative_position_index
    assert index[0].tolist() == row and index[0, 0] == corner
    assert backbone.rel_pos_bias.relative_position_bias_table.shape == (length, 2)
    if grid == (2, 2):
        assert index[1:].tolist() == [[10, 4, 3, 1, 0], [10, 5, 4, 2, 1], [10, 7, 6, 4, 3], [10, 8, 7, 5, 4]]
    else:
        assert index[1].tolist() == [16, 7, 6, 5, 2, 1, 0]


def test_relative_position_index_at_14_x_14() -> None:
    backbone = ViT("vit_nano_patch16_224", relative_positions="shared", pos_embed="none")
    index = backbone.rel_pos_bias.relative_position_index
    assert [index[1, 1], index[1, 196], index[196, 1]] == [364, 0, 728]
    assert [index[0, 1], index[1, 0], index[0, 0]] == [729, 730, 731]


@pytest.mark.parametrize("fused", [False, True])
def test_attention_with_a_bias_gives_beits_numbers(fused: bool) -> None:
    """BEiT's attention has no k bias; ours has one that changes nothing, because softmax ignores it."""
    attention = timm.models.vision_transformer.Attention(4, num_heads=2, qkv_bias=True)
    attention.fused_attn = fused
    k, channel = torch.meshgrid(torch.arange(12), torch.arange(4), indexing="ij")
    attention.qkv.weight.data = ((4 * k + channel) % 7 - 3) / 10
    k_bias = torch.tensor([3.0, -1.0, 2.0, 5.0])
    attention.qkv.bias.data = torch.cat(
        [torch.tensor([0.1, -0.2, 0.3, 0]), k_bias, torch.tensor([0.05, 0.1, -0.1, 0.2])]
    )
    attention.proj.weight.data, attention.proj.bias.data = torch.eye(4), torch.zeros(4)
    x = torch.tensor([[[1, 0, -1, 0.5], [0.2, 0.4, 0.6, 0.8], [-0.5, 1, 0.3, -0.2]]])
    plain = [
        [0.0849044, 0.0519722, 0.0189894, 0.2489748],
        [0.0572141, 0.0455987, 0.0137280, 0.2515585],
        [0.0394446, 0.0416617, 0.0146899, 0.2511300],
    ]
    biased = [
        [0.1051614, 0.0556597, 0.0676187, 0.2231945],
        [0.0115292, 0.0347243, -0.0409988, 0.2792159],
        [0.0251003, 0.0436454, 0.0209571, 0.2491546],
    ]
    bias = torch.stack([torch.tensor([[0, 0.1, 0.2], [0.3, 0, -0.1], [0.2, 0.4, 0]]), 0.5 * torch.eye(3)])
    torch.testing.assert_close(attention(x)[0], torch.tensor(plain), rtol=0, atol=1e-6)
    torch.testing.assert_close(attention(x, attn_mask=bias[None])[0], torch.tensor(biased), rtol=0, atol=1e-6)


def test_relative_positions_learn_and_move_every_token(images: torch.Tensor) -> None:
    backbone = ViT(NANO, relative_positions="shared", pos_embed="none", init="beit", layer_scale=0.1)
    before = backbone(images).patches
    backbone(images).patches.sum().backward()
    table = backbone.rel_pos_bias.relative_position_bias_table
    assert table.grad is not None and table.grad.abs().sum() > 0
    torch.nn.init.normal_(table)
    assert not torch.allclose(backbone(images).patches, before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(backbone(images).cls).all()


def test_a_table_for_each_block_is_timms_beit(images: torch.Tensor) -> None:
    """BEiT's fine-tuning form: timm's keys, and its numbers when the same weights are loaded."""
    ours = ViT(NANO, relative_positions="per_block", pos_embed="none", layer_scale=0.1).eval()
    assert "multi_crop" not in ViT.abilities(NANO, relative_positions="per_block") and not ours.multi_crop
    assert ours.layer_ids["blocks.1.attn.relative_position_bias_table"] == 2
    for p in ours.parameters():
        torch.nn.init.normal_(p, std=0.3)
    weights = {name: value for name, value in ours.state_dict().items() if not name.endswith("qkv.bias")}
    shape = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0, "global_pool": ""}
    official = timm.models.beit.Beit(
        img_size=16, patch_size=4, **shape, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1
    ).eval()
    renamed = {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): w for name, w in weights.items()}
    for i, block in enumerate(ours.blocks):
        block.attn.qkv.bias.data[24:48] = 0
        q, _, v = block.attn.qkv.bias.data.chunk(3)
        renamed |= {f"blocks.{i}.attn.q_bias": q, f"blocks.{i}.attn.v_bias": v}
    official.load_state_dict(renamed, strict=True)
    torch.testing.assert_close(ours(images).patches, official.forward_features(images)[:, 1:], rtol=1e-5, atol=1e-5)
    assert not torch.equal(*(block.attn.relative_position_bias_table for block in ours.blocks))


def test_beit_initial_weights() -> None:
    vit = ViT("vit_small_patch16_224", init="beit", mask_token=True, pos_embed="learned", layer_scale=0.1)
    assert vit.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.0108, rel=0.01)
    assert vit.blocks[0].attn.proj.weight.std().item() == pytest.approx(0.00763, rel=0.01)
    assert vit.blocks[1].mlp.fc2.weight.std().item() == pytest.approx(0.00539, rel=0.01)
    for token in (vit.cls_token, vit.mask_token, vit.pos_embed):
        assert token.std() > 0.005 and token.abs().max() <= 0.02
    assert vit.blocks[0].ls1.gamma.unique().tolist() == [pytest.approx(0.1)]


def test_dino_initial_weights() -> None:
    vit = ViT("vit_small_patch16_224", init="dino", pos_embed="learned")
    assert vit.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert vit.pos_embed.std().item() == pytest.approx(0.02, rel=0.02)
    assert vit.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    bound = 1 / (3 * 16 * 16) ** 0.5  # torch's default for the projection
    assert 0.9 * bound < vit.patch_embed.proj.weight.abs().max() <= bound
    assert vit.patch_embed.proj.bias.abs().max() > 0

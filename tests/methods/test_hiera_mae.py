"""Hiera's MAE against the worked numbers of its code (facebookresearch/hiera) and its invariants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.hiera import MaskUnitAttention, Unroll
from torch import Tensor, nn

from ssl_bench.backbones import build_backbone
from ssl_bench.methods.hiera_mae import Fusion, HieraMAE, to_raster
from ssl_bench.nn.patches import normalised_patches, patchify, reconstruction_loss, unpatchify, with_statistics_of
from ssl_bench.utils.errors import UserError

IMG = torch.arange(48.0).view(1, 3, 4, 4) / 10
PRED = (torch.arange(48.0) - 20).view(1, 4, 12) / 10
MASK = torch.tensor([[False, True, True, False]])


def make(name: str = "hiera_micro_32", **keywords: Any) -> HieraMAE:
    torch.manual_seed(1)
    small = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
    return HieraMAE(build_backbone(name, **HieraMAE.backbone_options), **{**small, **keywords})


def test_labels_numbers() -> None:
    patches = patchify(IMG, 2, channels_first=True)
    expected = [0.2, 0.3, 0.6, 0.7, 1.8, 1.9, 2.2, 2.3, 3.4, 3.5, 3.8, 3.9]
    torch.testing.assert_close(patches[0, 1], torch.tensor(expected))
    expected = [-1.3392501, -1.2668583, -1.0496825, -0.9772906, -0.1809798, -0.1085878]
    torch.testing.assert_close(normalised_patches(patches)[0, 1, :6], torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("channels_first", "expected"), [(True, 0.86801219), (False, 1.2661676)])
def test_loss_numbers(channels_first: bool, expected: float) -> None:
    target = patchify(IMG, 2, channels_first=channels_first)
    assert reconstruction_loss(PRED, target, MASK, True).item() == pytest.approx(expected, abs=1e-5)


def test_patches_and_their_statistics_have_inverses() -> None:
    images = torch.randn(2, 3, 8, 12)
    patches = patchify(images, 4, channels_first=True)
    torch.testing.assert_close(unpatchify(patches, 4, (2, 3), channels_first=True), images)
    torch.testing.assert_close(with_statistics_of(normalised_patches(patches), patches), patches, rtol=0, atol=1e-5)


def test_order_of_unrolled_tokens() -> None:
    tokens = torch.arange(16.0).view(1, 16, 1)
    order = [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]
    for splits in (1, 2):
        unrolled = Unroll((4, 4), (1, 1), [(2, 2)] * splits)(tokens)
        assert unrolled.flatten().tolist() == order
    assert unrolled.view(4, 4).amax(dim=0).tolist() == [5, 7, 13, 15]


def test_mask_unit_attention_numbers() -> None:
    attention = MaskUnitAttention(2, 2, 1, q_stride=2, window_size=1, use_mask_unit_attn=True)
    eye = torch.eye(2)
    attention.qkv.weight.data = torch.cat([eye, 0.5 * eye, torch.tensor([[1.0, 1.0], [1.0, -1.0]])])
    attention.proj.weight.data = eye
    for layer in (attention.qkv, attention.proj):
        nn.init.zeros_(layer.bias)
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [-1.0, 0.5]]])
    expected = torch.tensor([[2.4856334, 1.0], [0.3161192, -1.2279602]])
    torch.testing.assert_close(attention(x)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "millions"), [("hiera_tiny_224", 55.020896), ("hiera_base_224", 78.635648)])
def test_parameter_counts_of_the_paper_models(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = HieraMAE(build_backbone(name))
    assert sum(p.numel() for p in model.parameters()) == round(millions * 1e6)


def test_masks_of_the_paper() -> None:
    """19 of 49 units are kept, 120 of 196 patches are predicted, each of 16 x 16 pixels."""
    with torch.device("meta"):
        model = make("hiera_tiny_224")
    uniform = torch.rand(2, 49)
    model.uniform = lambda *shape: uniform  # type: ignore[method-assign]
    images, seen = torch.zeros(2, 3, 224, 224, device="meta"), []
    model.backbone.unit_tokens = lambda _, keep: (
        seen.append(keep)
        or [  # type: ignore[func-returns-value, method-assign]
            torch.zeros(2, 19, side, side, dim, device="meta") for side, dim in ((8, 96), (4, 192), (2, 384), (2, 768))
        ]
    )
    model.decode = lambda visible, keep: visible  # type: ignore[method-assign]
    visible, mask = model.reconstruct(images)
    assert seen[0].shape == (2, 19) and visible.shape == (2, 76, 768)
    assert mask.shape == (2, 196) and mask.sum(dim=1).tolist() == [120, 120]
    assert model.decoder_pred.out_features == 768 and model.decoder_pos_embed.shape[1] == 196
    units = mask.view(2, 7, 2, 7, 2).transpose(2, 3).flatten(3)
    assert (units.all(dim=3) | ~units.any(dim=3)).all()


def test_units_in_pre_training_do_not_depend_on_the_pooling_of_the_evaluated_encoder() -> None:
    pooled, own = (build_backbone("hiera_micro_32", pooled_stages=n).eval() for n in (None, 1))
    own.load_state_dict(pooled.state_dict())
    images, keep = torch.randn(2, 3, 32, 32), torch.tensor([[0, 5, 9], [2, 3, 15]])
    for a, b in zip(pooled.unit_tokens(images, keep), own.unit_tokens(images, keep), strict=True):
        assert torch.equal(a, b)
    assert pooled(images).patches.shape == (2, 16, 128)  # and pools again
    assert make().encoder.spec["pooled_stages"] is None


def test_fusion_against_its_formula() -> None:
    fusion = Fusion([2, 3, 4, 5])
    assert [head.kernel_size[0] for head in fusion.heads] == [4, 2]
    stages = [torch.randn(2, 3, side, side, dim) for side, dim in ((8, 2), (4, 3), (2, 4), (2, 5))]
    tokens = fusion(stages, nn.Identity())
    expected = stages[3].clone()
    for i in range(2):
        for j in range(2):
            for head, stage, n in ((fusion.heads[0], stages[0], 4), (fusion.heads[1], stages[1], 2)):
                part = stage[:, :, i * n : i * n + n, j * n : j * n + n]
                expected[:, :, i, j] += torch.einsum("bkrcd,ndrc->bkn", part, head.weight) + head.bias
    torch.testing.assert_close(tokens.patches.view(2, 3, 2, 2, 5), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens.cls, expected.flatten(1, 3).mean(dim=1), rtol=1e-4, atol=1e-5)


def test_tokens_of_units_go_to_their_places() -> None:
    places = torch.arange(16 * 16).view(16, 16)
    units = places.view(8, 2, 8, 2).transpose(1, 2).reshape(1, 64, 4)
    assert torch.equal(to_raster(units, (8, 8)).view(16, 16), places)


def test_decoder_puts_visible_units_in_their_places_and_mask_tokens_in_the_others() -> None:
    mae = make(decoder_depth=0)
    mae.decoder_embed, mae.decoder_norm, mae.decoder_pred = nn.Identity(), nn.Identity(), nn.Identity()
    keep, visible = torch.tensor([[3, 9]]), torch.randn(1, 8, 16)
    out = (mae.decode(visible, keep) - mae.decoder_pos_embed).view(4, 2, 4, 2, 16).transpose(1, 2).reshape(16, 4, 16)
    torch.testing.assert_close(out[[3, 9]], visible.view(2, 4, 16))
    others = [i for i in range(16) if i not in (3, 9)]
    torch.testing.assert_close(out[others], mae.mask_token.expand(14, 4, 16))


def test_encoder_never_sees_the_pixels_of_masked_units() -> None:
    mae, images = make().eval(), torch.randn(2, 3, 32, 32)
    noise = torch.rand(2, 16)
    mae.uniform = lambda *shape: noise  # type: ignore[method-assign]
    prediction, mask = mae.reconstruct(images)
    assert mask.sum(dim=1).tolist() == [40, 40]  # 10 of 16 units
    hidden = unpatchify(mask[..., None].expand(-1, -1, 48).float(), 4, (8, 8)).bool()
    again, _ = mae.reconstruct(torch.where(hidden, 99.0, images))
    assert torch.equal(prediction, again)


def test_prediction_reaches_every_pixel_of_masked_units_alone() -> None:
    """The loss moves with the target's pixels in masked units, and nowhere else."""
    mae, images = make().eval(), torch.randn(1, 3, 32, 32)
    noise = torch.rand(1, 16)
    mae.uniform = lambda *shape: noise  # type: ignore[method-assign]
    prediction, mask = mae.reconstruct(images)
    target = patchify(images, 4, channels_first=True).requires_grad_()
    reconstruction_loss(prediction.detach(), target, mask, True).backward()
    assert target.grad is not None
    assert torch.equal(target.grad.abs().sum(dim=2) > 0, mask)


def test_initial_weights_are_those_of_the_code() -> None:
    mae = make()
    assert mae.mask_token.abs().max() > 0 and mae.decoder_pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    head: Any = mae.fusion.heads[0]
    bound = (32 * 2 * 2) ** -0.5  # torch's default of a convolution
    assert 0.95 * bound < head.weight.abs().max() <= bound
    assert mae.decoder_embed.bias.eq(0).all() and mae.backbone.blocks[0].attn.qkv.bias.eq(0).all()


def test_weight_decay_spares_vectors_and_the_encoders_positions() -> None:
    mae = make()
    names = {id(p): n for n, p in mae.named_parameters()}
    decayed, spared = ([names[id(p)] for p in group["params"]] for group in mae.param_groups())
    assert {"mask_token", "decoder_pos_embed", "fusion.heads.0.weight"} <= set(decayed)
    assert "backbone.pos_embed" in spared and {mae.get_parameter(n).ndim for n in spared} == {1, 3}


def test_picture_shows_the_image_where_it_is_visible() -> None:
    mae, images = make(), torch.rand(2, 3, 32, 32)
    shown = mae.show(images)
    same = shown["masked"] == images
    assert {title: tuple(x.shape) for title, x in shown.items()} == dict.fromkeys(
        ("masked", "predicted"), (2, 3, 32, 32)
    )
    assert same.flatten(1).float().mean(dim=1).tolist() == pytest.approx([0.375, 0.375], abs=0.01)
    assert torch.equal(shown["predicted"][same], images[same]) and not torch.equal(shown["predicted"], images)


def test_other_backbones_are_refused() -> None:
    with pytest.raises(UserError, match=r"needs a backbone that keeps whole mask units.*hiera_tiny"):
        HieraMAE(build_backbone("vit_micro_patch8_32"))


def test_views_and_defaults_are_the_papers() -> None:
    mae = make()
    view = mae.views[0]
    assert (view.scale, view.interpolation, view.flip, view.jitter_p, view.blur) == ((0.2, 1.0), "bicubic", 0.5, 0, 0)
    assert HieraMAE.defaults.lr == pytest.approx(8e-4) and HieraMAE.defaults.betas == (0.9, 0.95)
    assert mae.mask_ratio == 0.6


def test_loss_falls_on_a_fixed_batch() -> None:
    mae, images = make(), torch.rand(8, 3, 32, 32)
    optimizer = torch.optim.AdamW(mae.param_groups(), lr=3e-3)
    losses: list[Tensor] = []
    for _ in range(30):
        torch.manual_seed(0)  # the same masks
        losses.append(mae.loss([images])["loss"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]

"""MAE against the worked numbers and invariants of its code (facebookresearch/mae)."""

from __future__ import annotations

import pytest
import torch

from ssl_bench.backbones.vit import ViT
from ssl_bench.methods.mae import MAE, patchify, reconstruction_loss, unpatchify
from ssl_bench.nn.masking import random_masking

IMG = torch.arange(48.0).view(1, 3, 4, 4) / 10
PRED = (torch.arange(48.0) - 20).view(1, 4, 12) / 10
MASK = torch.tensor([[False, True, True, False]])


@pytest.fixture
def mae(nano: ViT) -> MAE:
    torch.manual_seed(1)
    return MAE(nano, decoder_dim=16, decoder_depth=2, decoder_heads=2)


def test_patchify_numbers() -> None:
    patches = patchify(IMG, 2)[0]
    expected = [0, 1.6, 3.2, 0.1, 1.7, 3.3, 0.4, 2.0, 3.6, 0.5, 2.1, 3.7]
    torch.testing.assert_close(patches[0], torch.tensor(expected))
    torch.testing.assert_close(patches[1:3, :3], torch.tensor([[0.2, 1.8, 3.4], [0.8, 2.4, 4.0]]))
    torch.testing.assert_close(patches.mean(dim=1), torch.tensor([1.85, 2.05, 2.65, 2.85]))
    torch.testing.assert_close(patches.var(dim=1), torch.full((4,), 1.9081818))


def test_unpatchify_is_the_inverse() -> None:
    x = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(unpatchify(patchify(x, 4), 4, (2, 3)), x)


@pytest.mark.parametrize(("norm_pix", "expected"), [(False, 5.61), (True, 1.2661676)])
def test_loss_numbers(norm_pix: bool, expected: float) -> None:
    assert reconstruction_loss(PRED, patchify(IMG, 2), MASK, norm_pix).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("patch", "expected"), [*enumerate([2.8861678, 0.8461676, 1.6861678, 5.4061694])])
def test_loss_of_single_patches(patch: int, expected: float) -> None:
    mask = torch.arange(4)[None] == patch
    assert reconstruction_loss(PRED, patchify(IMG, 2), mask, True).item() == pytest.approx(expected, abs=1e-5)


def test_constant_patches_give_no_nan() -> None:
    loss = reconstruction_loss(torch.full((1, 4, 12), 0.3), torch.full((1, 4, 12), 0.5), MASK, True)
    assert loss.item() == pytest.approx(0.09, abs=1e-6)


def test_visible_patches_do_not_count() -> None:
    other = PRED.clone()
    other[0, 0] += 100
    target = patchify(IMG, 2)
    assert reconstruction_loss(PRED, target, MASK, True) == reconstruction_loss(other, target, MASK, True)


def test_parameter_counts_of_the_paper_models() -> None:
    for name, total, trainable in (
        ("vit_base_patch16_224", 111.907840, 111.655680),
        ("vit_large_patch16_224", 329.541888, None),
    ):
        with torch.device("meta"):
            model = MAE(ViT(name))
        assert sum(p.numel() for p in model.parameters()) == round(total * 1e6)
        if trainable:
            assert sum(p.numel() for p in model.parameters() if p.requires_grad) == round(trainable * 1e6)


def test_decoder_of_the_huge_model_predicts_patches_of_14_pixels() -> None:
    with torch.device("meta"):
        model = MAE(ViT("vit_nano_patch14_224"))  # it is the same for encoders of all sizes
    assert model.decoder_pred.out_features == 588 and model.decoder_pos_embed.shape == (1, 257, 512)


def test_encoder_never_sees_masked_pixels(mae: MAE) -> None:
    images = torch.randn(1, 3, 16, 16)
    keep = torch.tensor([[3, 7, 8, 12]])
    hidden = [i for i in range(16) if i not in keep[0].tolist()]
    patches = patchify(images, 4)
    patches[:, hidden] = 99.0
    torch.testing.assert_close(mae.backbone(unpatchify(patches, 4, (4, 4)), keep=keep), mae.backbone(images, keep=keep))


def test_decoder_is_the_official_one(mae: MAE) -> None:
    """``models_mae.py``: mask tokens appended, unshuffled, whole blocks, the class token cut off."""
    images = torch.randn(3, 3, 16, 16)
    noise = torch.rand(3, 16)
    keep, masked, mask = random_masking(noise, mae.mask_ratio)
    tokens = mae.backbone(images, keep=keep)
    visible = torch.cat([tokens.cls[:, None], tokens.patches], dim=1)
    x = mae.decoder_embed(visible)
    x_ = torch.cat([x[:, 1:], mae.mask_token.repeat(3, 16 + 1 - x.shape[1], 1)], dim=1)
    restore = noise.argsort(dim=1).argsort(dim=1)
    x_ = x_.gather(1, restore[:, :, None].repeat(1, 1, x.shape[2]))
    x = torch.cat([x[:, :1], x_], dim=1) + mae.decoder_pos_embed
    for block in mae.decoder_blocks:
        x = x + block.attn(block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    official = mae.decoder_pred(mae.decoder_norm(x))[:, 1:]
    ours = mae.decode(visible, keep, masked)
    torch.testing.assert_close(ours, official[torch.arange(3)[:, None], masked], rtol=1e-4, atol=1e-5)
    target, at = patchify(images, 4), masked[..., None].expand_as(ours)
    torch.testing.assert_close(
        reconstruction_loss(ours, target.gather(1, at), None, True), reconstruction_loss(official, target, mask, True)
    )


def test_gradient_reaches_the_mask_token_and_not_the_positions(mae: MAE) -> None:
    mae.loss([torch.randn(2, 3, 16, 16)])["loss"].backward()
    assert mae.mask_token.grad is not None and mae.mask_token.grad.abs().sum() > 0
    assert mae.decoder_pos_embed.grad is None and mae.backbone.pos_embed.grad is None


def test_weight_decay_spares_vectors_alone(mae: MAE) -> None:
    names = {id(p): n for n, p in mae.named_parameters()}
    decayed, spared = ([names[id(p)] for p in group["params"]] for group in mae.param_groups())
    assert "mask_token" in decayed and "backbone.cls_token" in decayed  # as in the official script
    assert all(n.endswith(("bias", "weight")) and ("norm" in n or n.endswith("bias")) for n in spared)


def test_views_and_defaults_are_the_papers() -> None:
    view = MAE(ViT("vit_nano_patch4_16")).views[0]
    assert (view.scale, view.interpolation, view.flip, view.jitter_p, view.blur) == ((0.2, 1.0), "bicubic", 0.5, 0, 0)
    assert MAE.defaults.lr == pytest.approx(2.4e-3) and MAE.defaults.betas == (0.9, 0.95)

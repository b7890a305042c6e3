"""MPP: the quantiser's worked numbers, the three corruptions, and the three targets against naive formulas."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.backbones.vit import ViT
from ssl_bench.methods.mpp import MPP, color_classes, corrupt
from ssl_bench.utils.errors import UserError
from ssl_bench.views.evaluation import denormalize

Make = partial(ViT, "vit_nano_patch4_16", pos_embed="learned", init="timm", mask_token=True)
TEACHERS = ("mean_color", "color_grid", "pixels")


def image() -> Tensor:
    """4 x 4 pixels, patches of 2: means [.0875, .3, .25], [.9125, .6, .26], [.5, .99, .75], [.125, 0, .76]."""
    red = [[0, 0.1, 0.9, 1], [0.05, 0.2, 0.95, 0.8], [0.5, 0.5, 0.125, 0.125], [0.5, 0.5, 0.125, 0.125]]
    green = [[0.3, 0.3, 0.6, 0.6]] * 2 + [[0.99, 0.99, 0, 0]] * 2
    blue = [[0.25, 0.25, 0.26, 0.26]] * 2 + [[0.75, 0.75, 0.76, 0.76]] * 2
    return torch.tensor([[red, green, blue]])


def test_mean_colour_numbers() -> None:
    assert color_classes(image(), 2).flatten().tolist() == [18, 482, 318, 70]


def test_colour_grid_numbers() -> None:
    red = torch.arange(64.0).view(8, 8) / 64
    pixels = torch.stack([red, 1 - red, torch.full((8, 8), 0.5)])[None]
    expected = [[60, 60, 116, 116], [172, 172, 228, 228], [284, 284, 340, 340], [396, 396, 452, 452]]
    assert color_classes(pixels, 8, 4).view(4, 4).tolist() == expected


@pytest.mark.parametrize(("patch", "cells"), [(4, 1), (4, 4), (8, 4), (8, 1)])
def test_classes_of_every_cell_against_a_loop(patch: int, cells: int) -> None:
    pixels = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    classes, side = color_classes(pixels, patch, cells), patch // cells
    assert classes.shape == (2, (16 // patch) * (24 // patch), cells**2)
    for b in range(2):
        for p in range(classes.shape[1]):
            for c in range(cells**2):
                row = p // (24 // patch) * patch + c // cells * side
                column = p % (24 // patch) * patch + c % cells * side
                means = [float(pixels[b, k, row : row + side, column : column + side].mean()) for k in range(3)]
                r, g, blue = (min(7, math.floor(8 * m)) for m in means)
                assert classes[b, p, c] == 64 * r + 8 * g + blue


def test_white_is_the_last_class_and_normalising_can_be_undone() -> None:
    assert color_classes(torch.ones(1, 3, 4, 4), 4).item() == 511
    assert color_classes(torch.zeros(1, 3, 4, 4), 4).item() == 0
    mpp, pixels = MPP(Make()), torch.rand(2, 3, 16, 16)
    view = mpp.views[0]
    mean, std = torch.tensor(view.mean).view(3, 1, 1), torch.tensor(view.std).view(3, 1, 1)
    torch.testing.assert_close(denormalize((pixels - mean) / std, view), pixels, rtol=0, atol=1e-6)


def test_half_of_the_patches_of_each_image_rounded_up() -> None:
    for n_patches, expected in ((196, 98), (49, 25), (16, 8)):
        noise, kind, other = torch.rand(3, 5, n_patches)
        chosen, mask, swap = corrupt(noise, kind, other, 0.5, 0.8, 0.1)
        assert chosen.shape == (5, expected)
        assert all(len(set(row)) == expected for row in chosen.tolist())
        touched = mask | (swap != torch.arange(n_patches))
        assert not touched.scatter(1, chosen, False).any()


def test_one_draw_decides_between_the_three_kinds() -> None:
    n = 400
    noise, kind, other = torch.rand(3, n, 196, generator=torch.Generator().manual_seed(0))
    chosen, mask, swap = corrupt(noise, kind, other, 0.5, 0.8, 0.1)
    swapped = swap != torch.arange(196)
    assert not (mask & swapped).any()
    shares = [part.sum().item() / chosen.numel() for part in (mask, swapped)]
    assert shares == pytest.approx([0.8, 0.1], abs=0.006)
    came_from = torch.bincount(swap[swapped], minlength=196)  # every patch is equally likely to be the other one
    assert came_from.float().std() < 2 * came_from.float().mean().sqrt()


def test_another_patch_is_never_the_patch_itself() -> None:
    for u in (0.0, 0.5, 1.0):  # a float32 draw can round up to the end of the range
        noise, kind = torch.arange(9.0)[None], torch.full((1, 9), 0.85)
        swap = corrupt(noise, kind, torch.full((1, 9), u), 1.0, 0.8, 0.1).swap[0]
        assert (swap != torch.arange(9)).all() and swap.min() >= 0 and swap.max() <= 8


@pytest.mark.parametrize("target", TEACHERS)
def test_loss_against_a_naive_formula(target: str) -> None:
    torch.manual_seed(0)
    mpp = MPP(Make(), target=target)  # type: ignore[arg-type]
    view, pixels = mpp.drawn_views[0], torch.rand(3, 3, 16, 16)
    mean, std = torch.tensor(view.mean).view(3, 1, 1), torch.tensor(view.std).view(3, 1, 1)
    images = (pixels - mean) / std
    torch.manual_seed(5)
    loss = mpp.loss([images])["loss"].item()
    torch.manual_seed(5)
    noise, kind, other = mpp.uniform(3, 16, 3).unbind(-1)
    chosen, mask, swap = corrupt(noise, kind, other, 0.5, 0.8, 0.1)
    predictions = mpp.head(mpp.backbone(images, mask=mask, swap=swap).patches)
    terms = []
    for b, patch in ((image, int(p)) for image in range(3) for p in chosen[image]):
        row, column = patch // 4 * 4, patch % 4 * 4
        own = pixels[b, :, row : row + 4, column : column + 4]
        if target == "pixels":
            terms.append((predictions[b, patch] - own.permute(1, 2, 0).flatten()).square().mean())
            continue
        cells = own.mean(dim=(1, 2))[:, None] if target == "mean_color" else own.flatten(1)
        level = (cells * 8).floor().clamp(max=7)
        classes = (64 * level[0] + 8 * level[1] + level[2]).long()
        terms.append(F.cross_entropy(predictions[b, patch].view(-1, 512), classes))
    assert loss == pytest.approx(torch.stack(terms).mean().item(), abs=1e-5)


def test_uniform_logits_are_at_chance() -> None:
    mpp = MPP(Make())
    torch.nn.init.zeros_(mpp.head.weight)
    assert mpp.loss([torch.randn(2, 3, 16, 16)])["loss"].item() == pytest.approx(6.2383246, abs=1e-5)


def test_backbone_sees_the_mask_token_and_the_other_patch() -> None:
    """What stands in a place decides the tokens; a masked patch's own pixels don't."""
    backbone, images = Make().eval(), torch.randn(1, 3, 16, 16)
    mask, swap = torch.zeros(1, 16, dtype=torch.bool), torch.arange(16)[None].clone()
    mask[0, 3], swap[0, 5] = True, 9
    other = images.clone()
    other[:, :, 0:4, 12:16] = 7.0  # patch 3, hidden
    other[:, :, 4:8, 4:8] = -7.0  # patch 5, replaced
    torch.testing.assert_close(backbone(images, mask=mask, swap=swap), backbone(other, mask=mask, swap=swap))
    moved = images.clone()
    moved[:, :, 4:8, 4:8] = images[:, :, 8:12, 4:8]  # patch 9 in the place of patch 5
    torch.testing.assert_close(backbone(images, swap=swap), backbone(moved))


@pytest.mark.parametrize(("target", "width"), [("mean_color", 512), ("color_grid", 8192), ("pixels", 768)])
def test_heads_of_the_paper(target: str, width: int) -> None:
    backbone = ViT("vit_tiny_patch16_32", **MPP.backbone_options)
    assert MPP(backbone, target=target).head.weight.shape == (width, 192)  # type: ignore[arg-type]


def test_gradient_reaches_the_mask_token() -> None:
    mpp = MPP(Make())
    mpp.loss([torch.randn(4, 3, 16, 16)])["loss"].backward()
    assert mpp.backbone.mask_token is not None and mpp.backbone.mask_token.grad is not None
    assert mpp.backbone.mask_token.grad.abs().sum() > 0


def test_defaults_are_the_papers_and_wrong_cells_are_refused() -> None:
    assert MPP.defaults.lr == pytest.approx(2e-4) and MPP.defaults.betas == (0.9, 0.999)
    with pytest.raises(UserError, match="patches of 14 pixels"):
        MPP(ViT("vit_nano_patch14_28", mask_token=True), target="color_grid")

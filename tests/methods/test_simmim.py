"""SimMIM against the worked numbers of its code (microsoft/SimMIM) and its invariants, on a ViT and a Swin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_bench.backbones import build_backbone, family_of, options_for
from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.commands.convert import convert
from ssl_bench.config.recipe import load_recipe
from ssl_bench.methods.simmim import SimMIM, enlarged, masked_l1, multi_step
from ssl_bench.utils.errors import UserError

VIT, SWIN = "vit_nano_patch4_16", "swin_nano_patch2_window2_16"


def make(name: str = VIT, **keywords: Any) -> SimMIM:
    torch.manual_seed(1)
    options = options_for(family_of(name), SimMIM.backbone_options) | {"drop_path": 0.0}
    return SimMIM(build_backbone(name, **options), **{"mask_patch": 8, **keywords})


def test_loss_numbers() -> None:
    image = torch.arange(48.0).view(1, 3, 4, 4) / 10
    mask = enlarged(torch.tensor([[[False, True], [True, False]]]), 2)[None]
    assert masked_l1(torch.ones(1, 3, 4, 4), image, mask).item() == pytest.approx(1.5583315, abs=1e-5)


def test_pixels_of_the_head() -> None:
    pixels = nn.PixelShuffle(2)(torch.arange(12.0).view(1, 12, 1, 1))[0]
    assert pixels.tolist() == [[[4 * c, 4 * c + 1], [4 * c + 2, 4 * c + 3]] for c in range(3)]


@pytest.mark.parametrize(
    ("name", "masked", "cells"),
    [
        ("vit_nano_patch16_224", 120, 196),  # 30 of 49 squares
        ("vit_nano_patch16_192", 88, 144),  # 22 of 36
        ("vit_nano_patch16_64", 12, 16),  # 3 of 4
        ("swin_micro_patch8_window6_192", 22, 36),
    ],
)
def test_number_of_masked_cells(name: str, masked: int, cells: int) -> None:
    with torch.device("meta"):
        method = make(name, mask_patch=32)
    method._device = torch.device("cpu")
    mask = method.masks(5)
    assert mask.shape == (5, cells) and mask.sum(dim=1).tolist() == [masked] * 5


def test_the_square_of_the_least_noise_is_seen() -> None:
    """The authors' generator at 64 px leaves the upper left one: 12 of 16 patches are masked."""
    method = make("vit_nano_patch16_64", mask_patch=32)
    method.uniform = lambda *shape: torch.tensor([[0.1, 0.9, 0.3, 0.5]])  # type: ignore[method-assign]
    mask = method.masks(1).view(4, 4)
    assert not mask[:2, :2].any() and mask.sum() == 12


def test_masks_are_whole_squares() -> None:
    method = make("vit_nano_patch4_16x24")
    squares = method.masks(50).view(50, 2, 2, 3, 2).transpose(2, 3).flatten(3)
    assert (squares.all(dim=3) | ~squares.any(dim=3)).all()
    assert squares.any(dim=3).flatten(1).sum(dim=1).eq(4).all()  # ceil(6 * 0.6)
    assert squares.any(dim=3).float().mean(dim=0).min() > 0.3  # anywhere


@pytest.mark.parametrize("name", [VIT, SWIN])
def test_loss_by_hand(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prediction of a cell is the linear layer on its token; visible pixels don't count."""
    method, images = make(name).eval(), torch.randn(2, 3, 16, 16)
    mask = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) < 0.6
    monkeypatch.setattr(method, "masks", lambda batch: mask)
    tokens = method.backbone(images, mask=mask).patches
    layer: Any = method.decoder[0]
    errors = []
    for b in range(2):
        for i in mask[b].nonzero().flatten().tolist():
            row, column = 4 * (i // 4), 4 * (i % 4)
            predicted = (layer.weight[:, :, 0, 0] @ tokens[b, i] + layer.bias).view(3, 4, 4)
            errors.append((predicted - images[b, :, row : row + 4, column : column + 4]).abs().mean())
    torch.testing.assert_close(method.loss([images])["loss"], torch.stack(errors).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [VIT, SWIN])
def test_encoder_never_sees_masked_pixels(name: str) -> None:
    method, images = make(name).eval(), torch.randn(2, 3, 16, 16)
    mask = method.masks(2)
    prediction = method.reconstruct(images, mask)
    hidden = method.of_pixels(mask)
    assert prediction.shape == images.shape and hidden.shape == (2, 1, 16, 16)
    assert torch.equal(prediction, method.reconstruct(torch.where(hidden, 99.0, images), mask))
    assert not torch.equal(prediction, method.reconstruct(torch.where(hidden, images, 99.0), mask))


def test_rates_of_the_authors_schedule() -> None:
    """800 epochs of 10 steps: warm-up over 10 epochs, a tenth from epoch 700 on, asked one step late."""
    rates = [multi_step(i, 8000, 4e-4, 10 / 800, 2e-6, (0.875,)) for i in range(8000)]
    assert rates[:2] == [2e-6, 2e-6] and rates[51] == pytest.approx(2e-6 + (4e-4 - 2e-6) / 2)
    assert rates[101] == rates[7000] == 4e-4 and rates[7001] == rates[-1] == pytest.approx(4e-5)
    method = make()
    assert method.learning_rate(0, 8000) == pytest.approx(2e-6)
    assert method.learning_rate(101, 8000) == pytest.approx(4e-4)
    assert method.learning_rate(7001, 8000) == pytest.approx(4e-5)


@pytest.mark.parametrize("recipe", ["vit_base_in1k", "swin_base_in1k"])
def test_recipes_of_the_paper(recipe: str) -> None:
    """Rates of the authors are for a batch of 512."""
    training = load_recipe("simmim", recipe).training
    assert training.lr == pytest.approx(1e-4 * 2048 / 512) and training.warmup_lr == pytest.approx(5e-7 * 2048 / 512)
    assert (training.epochs, training.warmup_epochs, training.clip_grad) == (800, 10, 5.0)


def decayed_and_spared(method: SimMIM) -> tuple[set[str], set[str]]:
    names = {id(p): n for n, p in method.named_parameters()}
    groups = method.param_groups()
    return tuple({names[id(p)] for p in group["params"]} for group in groups)  # type: ignore[return-value]


def test_weight_decay_is_the_authors() -> None:
    decayed, spared = decayed_and_spared(make())
    assert {"decoder.0.weight", "backbone.mask_token", "backbone.rel_pos_bias.relative_position_bias_table"} <= decayed
    assert {"backbone.cls_token", "decoder.0.bias", "backbone.blocks.0.ls1.gamma"} <= spared
    decayed, spared = decayed_and_spared(make(SWIN))
    assert "backbone.mask_token" in spared
    assert "backbone.layers.0.blocks.0.attn.relative_position_bias_table" in decayed


def test_initial_weights_of_the_vit_and_the_head() -> None:
    method = make("vit_nano_patch4_16")
    backbone: Any = method.backbone
    assert backbone.blocks[0].attn.qkv.weight.abs().max() <= 0.02 and backbone.mask_token.abs().max() <= 0.02
    weight: Any = method.decoder[0].weight
    assert 0.9 * 24**-0.5 < weight.abs().max() <= 24**-0.5  # torch's default of a convolution


def test_views_and_defaults_are_the_papers() -> None:
    method = make("vit_nano_patch16_224", mask_patch=32)
    view = method.views[0]
    assert (view.scale, view.ratio, view.interpolation) == ((0.67, 1.0), (3 / 4, 4 / 3), "bilinear")
    assert (view.flip, view.jitter_p, view.blur, view.grayscale) == (0.5, 0, 0, 0)
    d = SimMIM.defaults
    assert (d.betas, d.eps, d.weight_decay, d.batch_size) == ((0.9, 0.999), 1e-8, 0.05, 2048)
    backbone: Any = method.backbone
    assert backbone.pos_embed is None and backbone.rel_pos_bias is not None


@pytest.mark.parametrize("name", [VIT, SWIN])
def test_picture_shows_the_image_where_it_is_visible(name: str) -> None:
    method, images = make(name), torch.rand(2, 3, 16, 16)
    shown = method.show(images)
    same = shown["masked"] == images
    assert same.flatten(1).float().mean(dim=1).tolist() == pytest.approx([0.25, 0.25], abs=0.02)  # 1 of 4 squares
    assert torch.equal(shown["predicted"][same], images[same]) and not torch.equal(shown["predicted"], images)


@pytest.mark.parametrize("mask_patch", [0, 6, 32])
def test_squares_that_do_not_fit_are_refused(mask_patch: int) -> None:
    with pytest.raises(UserError, match=rf"mask_patch is {mask_patch}; it must be a multiple of the 4 pixels"):
        make(mask_patch=mask_patch)


def test_hiera_is_refused() -> None:
    with pytest.raises(UserError, match="replaces masked patches by a learned token"):
        make("hiera_micro_32")


# Released files -------------------------------------------------------------------------------------------------------


def official(net: nn.Module) -> dict[str, Tensor]:
    """Names of ``vision_transformer.py`` and ``swin_transformer.py``: BEiT's, and Swin's merging behind stages."""
    state: dict[str, Tensor] = {}
    for name, value in net.state_dict().items():
        if name.endswith("qkv.bias") and name.startswith("blocks."):
            at = name.removesuffix("qkv.bias")
            state[f"{at}q_bias"], _, state[f"{at}v_bias"] = value.chunk(3)
            continue
        name = name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
        if ".downsample." in name:
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}.", f"layers.{stage - 1}.")
        state[name] = value
    return state


@pytest.mark.parametrize("name", [VIT, SWIN])
def test_released_files_convert(name: str, tmp_path: Any) -> None:
    net: Any = make(name).backbone
    for p in net.parameters():
        p.data.copy_(torch.randn(p.shape) * 0.3)
    for block in net.block_modules():
        if name == VIT:
            block.attn.qkv.bias.data[24:48] = 0  # of the keys, which the authors don't have
    state = {f"encoder.{key}": value for key, value in official(net).items()}
    state |= {"decoder.0.weight": torch.zeros(48, 24, 1, 1), "decoder.0.bias": torch.zeros(48)}
    torch.save({"model": state, "epoch": 799}, tmp_path / "c.pth")
    lines: list[str] = []
    out = convert(tmp_path / "c.pth", method="simmim", backbone=name, out=tmp_path / "e.pt", show=lines.append)
    assert "100 % of the backbone's tensors, 100 % of its parameters" in "\n".join(lines)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(load_encoder(out).encoder(x).patches, net.eval()(x).patches, rtol=1e-5, atol=1e-5)
    torch.save({"model": {k: v for k, v in state.items() if "norm2" not in k}}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="does not fit simmim"):
        convert(tmp_path / "c.pth", method="simmim", backbone=name, out=tmp_path / "f.pt", show=lines.append)

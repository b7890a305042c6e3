"""BEiT against the worked numbers of its code (microsoft/unilm, beit), and its invariants."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_bench.backbones.vit import ViT
from ssl_bench.methods.beit import BEiT, masked_prediction
from ssl_bench.teachers.dalle import Tokenizer
from ssl_bench.utils.errors import UserError

LOGITS = torch.tensor([[2, 0.5, -1, 0], [0.1, 0.2, 0.3, 0.4], [-1, 3, 0, 1]])


def tokenizer(**changes: int) -> Tokenizer:
    torch.manual_seed(2)
    return Tokenizer(**{"codebook_size": 16, "width": 8, "blocks": 1, "stride": 2} | changes)  # type: ignore[arg-type]


def make(name: str = "vit_nano_patch4_16", **changes: object) -> BEiT:
    torch.manual_seed(1)
    options = BEiT.backbone_options | {"drop_path": 0.0}
    keywords = {"codebook_size": 16, "stride": 2, "min_block": 2, "mask_ratio": 0.4} | changes
    return BEiT(ViT(name, **options), **keywords)  # type: ignore[arg-type]


@pytest.fixture
def beit() -> BEiT:
    method = make()
    method.set_teacher("tokenizer", tokenizer())
    return method


def test_loss_numbers() -> None:
    for row, (code, expected) in enumerate(zip([0, 3, 2], [0.3423496, 1.2425356, 3.1851826], strict=True)):
        one = masked_prediction(LOGITS[row : row + 1], torch.tensor([code]))["loss"]
        assert one.item() == pytest.approx(expected, abs=1e-6)
    result = masked_prediction(LOGITS, torch.tensor([0, 3, 2]))
    assert result["loss"].item() == pytest.approx(1.5900226, abs=1e-6)
    assert result["accuracy"].item() == pytest.approx(2 / 3)


def test_uniform_logits_are_at_chance() -> None:
    loss = masked_prediction(torch.zeros(7, 8192), torch.arange(7))["loss"]
    assert loss.item() == pytest.approx(9.010913, abs=1e-5)


def test_loss_is_a_flat_mean_over_the_masked_patches(beit: BEiT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images with more masked patches count more; codes are aligned with patches row by row."""
    images, pixels = torch.randn(2, 3, 16, 16), torch.rand(2, 3, 8, 8)
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 1, 1:3], masks[1, 2, 0] = True, True
    monkeypatch.setattr("ssl_bench.methods.beit.block_masking", lambda *_: masks)
    loss = beit.loss([images, pixels])["loss"]
    codes = beit.frozen[0].tokens(pixels)
    logits = beit.lm_head(beit.backbone(images, mask=masks.flatten(1)).patches).log_softmax(-1)
    terms = [logits[b, 4 * r + c, codes[b, r, c]] for b, r, c in ((0, 1, 1), (0, 1, 2), (1, 2, 0))]
    assert loss.item() == pytest.approx(-sum(terms).item() / 3, abs=1e-5)


def test_pixels_of_masked_patches_do_not_matter(beit: BEiT, monkeypatch: pytest.MonkeyPatch) -> None:
    images, pixels = torch.randn(1, 3, 16, 16), torch.rand(1, 3, 8, 8)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0, 3] = True
    monkeypatch.setattr("ssl_bench.methods.beit.block_masking", lambda *_: mask)
    loss = beit.loss([images, pixels])["loss"]
    images[:, :, :4, 12:] = 50.0
    assert beit.loss([images, pixels])["loss"] == loss
    images[:, :, :4, 8:12] += 1.0
    assert beit.loss([images, pixels])["loss"] != loss


def test_75_of_196_patches_are_wanted_on_the_papers_grid() -> None:
    assert BEiT(ViT("vit_nano_patch16_224", mask_token=True), codebook_size=16).n_masked == 75
    small = make("vit_nano_patch4_16x24", mask_ratio=0.4)
    assert small.n_masked == 10


def test_no_masked_patch_is_no_loss(beit: BEiT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_bench.methods.beit.block_masking", lambda *_: torch.zeros(2, 4, 4, dtype=torch.bool))
    scalars = beit.loss([torch.randn(2, 3, 16, 16), torch.rand(2, 3, 8, 8)])
    assert scalars["loss"].item() == 0 and scalars["accuracy"].item() == 0


def test_head_starts_truncated_at_one_sigma() -> None:
    head = make(codebook_size=2048).lm_head
    assert head.weight.abs().max() <= 0.02 and head.weight.std().item() == pytest.approx(0.0108, abs=2e-4)
    assert not head.bias.any()


def test_weight_decay_spares_vectors_and_the_cls_token(beit: BEiT) -> None:
    names = {id(p): n for n, p in beit.named_parameters()}
    decayed, spared = ([names[id(p)] for p in group["params"]] for group in beit.param_groups())
    assert {"backbone.mask_token", "backbone.rel_pos_bias.relative_position_bias_table"} <= set(decayed)
    assert "backbone.cls_token" in spared and "lm_head.bias" in spared
    assert any("gamma" in name for name in spared) and len(decayed) + len(spared) == len(names)


def test_tokenizer_is_frozen_and_never_saved(beit: BEiT) -> None:
    beit.loss([torch.randn(2, 3, 16, 16), torch.rand(2, 3, 8, 8)])["loss"].backward()
    assert all(p.grad is None for p in beit.frozen[0].parameters()) and not beit.frozen[0].training
    assert not any("frozen" in key or "encoder.blocks.input" in key for key in beit.state_dict())
    assert all(p.grad is not None for p in beit.parameters() if p.requires_grad)


def test_views_are_one_crop_at_two_sizes() -> None:
    image, tokens = make("vit_nano_patch4_16x24", stride=8).views
    assert (image.sides, image.interpolation, image.same) == ((16, 24), "bicubic", False)
    assert (tokens.sides, tokens.interpolation, tokens.same) == ((32, 48), "lanczos", True)
    assert (tokens.mean, tokens.std) == ((0, 0, 0), (1, 1, 1)) and image.std != tokens.std
    for view in (image, tokens):
        assert (view.scale, view.flip) == ((0.08, 1.0), 0.5)
        assert (view.jitter, view.jitter_p) == ((0.4, 0.4, 0.4, 0.0), 1.0)


def test_tokenizers_that_do_not_fit_are_refused() -> None:
    for changes, message in (
        ({"codebook_size": 32}, "codebook_size 32, the recipe says 16; add --set codebook_size=32"),
        ({"stride": 4}, "stride 4, the recipe says 2"),
    ):
        with pytest.raises(UserError, match=message):
            make().set_teacher("tokenizer", tokenizer(**changes))
    with pytest.raises(UserError, match="is a Linear; BEiT needs a dVAE"):
        make().set_teacher("tokenizer", nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"unknown tokenizer 'dale:x'.*dalle:PATH"):
        make(tokenizer="dale:x").set_teacher("tokenizer", None)


def test_released_tokenizer_from_a_path(tmp_path: Path) -> None:
    source = tokenizer()
    torch.save(source.encoder.state_dict(), tmp_path / "dalle_encoder.pt")
    method = make(tokenizer=f"dalle:{tmp_path / 'dalle_encoder.pt'}")
    method.set_teacher("tokenizer", None)
    pixels = torch.rand(2, 3, 8, 8)
    assert torch.equal(method.tokens(pixels), source.tokens(pixels))
    assert method.flags == ["external teacher", "external data"] and not make().flags


def test_blocks_that_cannot_fit_are_refused() -> None:
    with pytest.raises(UserError, match="min_block is 16, more than the 6 patches to mask of 4 x 4"):
        make(min_block=16)


def test_defaults_are_the_papers() -> None:
    config = BEiT.defaults
    assert config.lr == pytest.approx(1.5e-3) and (config.min_lr, config.clip_grad, config.weight_decay) == (
        1e-5,
        3.0,
        0.05,
    )
    assert math.isclose(BEiT.backbone_options["layer_scale"], 0.1) and BEiT.teachers == ("tokenizer",)

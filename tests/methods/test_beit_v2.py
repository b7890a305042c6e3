"""BEiT v2 and its tokenizer, VQ-KD, against worked numbers of their code (microsoft/unilm, beit2), and invariants."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssl_bench.backbones import build_backbone
from ssl_bench.backbones.vit import ViT
from ssl_bench.checkpoints.encoder_file import load_encoder, save_encoder
from ssl_bench.data.datasets import Splits
from ssl_bench.methods.beit import masked_prediction
from ssl_bench.methods.beit_v2 import BEiTv2
from ssl_bench.methods.vqkd import VQKD
from ssl_bench.nn.masking import fill_masks
from ssl_bench.teachers.vqkd import Quantizer, VQKDTokenizer
from ssl_bench.utils.errors import RunError, UserError

CODES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.6, -0.8]])
VECTORS = F.normalize(torch.tensor([[3.0, 4.0], [2.0, -0.5], [-1.0, -1.0], [0.1, 0.2]]), dim=1)


def quantizer() -> Quantizer:
    made = Quantizer(3, 2, 0.99)
    made.weight.copy_(CODES)
    return made


def tokenizer(codes: int = 16, name: str = "vit_nano_patch4_16") -> VQKDTokenizer:
    torch.manual_seed(2)
    return VQKDTokenizer(ViT(name, pos_embed="learned"), codebook_size=codes, code_dim=8)


def make(name: str = "vit_nano_patch4_16", **changes: object) -> BEiTv2:
    torch.manual_seed(1)
    options = BEiTv2.backbone_options | {"drop_path": 0.0}
    keywords = {"codebook_size": 16, "min_block": 2, "mask_ratio": 0.4} | changes
    return BEiTv2(ViT(name, **options), **keywords)  # type: ignore[arg-type]


@pytest.fixture
def beit() -> BEiTv2:
    method = make()
    method.set_teacher("tokenizer", tokenizer())
    return method


@pytest.fixture
def vqkd() -> VQKD:
    torch.manual_seed(3)
    method = VQKD(ViT("vit_nano_patch4_16", **VQKD.backbone_options), codebook_size=16, code_dim=8, decoder_depth=1)
    method.set_teacher("teacher", ViT("vit_nano_patch4_16"), "tests")
    return method


def test_quantizer_numbers() -> None:
    made = quantizer()
    rounded, ids, commitment = made(VECTORS)
    assert ids.tolist() == [1, 0, 2, 1]
    assert commitment.item() == pytest.approx(0.08637020, abs=1e-7)
    torch.testing.assert_close(rounded, CODES[ids])
    made.follow(VECTORS, ids)
    expected = torch.tensor([[0.9999971, -0.0024261], [0.0052651, 0.9999862], [-0.6011309, -0.7991506]])
    torch.testing.assert_close(made.weight, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(made.cluster_size, torch.tensor([0.01, 0.02, 0.01]))


def test_codes_that_nobody_took_stay() -> None:
    made = quantizer()
    made.follow(VECTORS[:1], made.nearest(VECTORS[:1]))
    assert torch.equal(made.weight[[0, 2]], CODES[[0, 2]]) and not torch.equal(made.weight[1], CODES[1])


def test_gradients_go_straight_through() -> None:
    z = VECTORS.clone().requires_grad_()
    rounded, _, commitment = quantizer()(z)
    (rounded * torch.arange(8.0).view(4, 2)).sum().backward(retain_graph=True)
    torch.testing.assert_close(z.grad, torch.arange(8.0).view(4, 2))
    z.grad = None
    commitment.backward()
    torch.testing.assert_close(z.grad, 2 * (VECTORS - CODES[[1, 0, 2, 1]]) / 8)


def test_first_codes_are_centres_of_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.eye(4)
    z = F.normalize(directions.repeat(25, 1) + 0.05 * torch.randn(100, 4, generator=generator), dim=1)
    draws = torch.rand(100, generator=generator)
    draws[:4] = 0.0  # one of each
    made = Quantizer(4, 4, 0.99)
    made.start(z, draws)
    assert torch.equal((made.weight @ directions.T).argmax(dim=1).sort().values, torch.arange(4))
    torch.testing.assert_close(made.weight.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(made.cluster_size, torch.full((4,), 25.0))
    few = Quantizer(6, 4, 0.99)
    few.start(z[:4], draws[:4])  # fewer vectors than codes
    assert torch.isfinite(few.weight).all()


def test_tokens_see_pixels_mapped_to_minus_one_and_one() -> None:
    made = tokenizer().eval()
    made.encoder.mean = made.encoder.std = (0.5, 0.5, 0.5)
    images = torch.rand(2, 3, 16, 24)
    z = F.normalize(made.encode_task_layer(made.encoder(2 * images - 1).patches), dim=2)
    nearest = torch.cdist(z, made.quantize.weight[None]).argmin(dim=2)
    assert torch.equal(made.tokens(images), nearest.view(2, 4, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # codes don't depend on the precision of the training
        assert torch.equal(made.tokens(images), nearest.view(2, 4, 6))


def test_tokenizer_keys_and_its_file(vqkd: VQKD, tmp_path: Path) -> None:
    keys = set(vqkd.encoder.state_dict())
    assert {
        "encode_task_layer.0.weight",
        "encode_task_layer.2.bias",
        "quantize.weight",
        "quantize.cluster_size",
    } <= keys
    assert "encoder.blocks.0.attn.qkv.weight" in keys and not any("decode" in key for key in keys)
    about = {"input": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    save_encoder(tmp_path / "encoder.pt", vqkd.encoder, vqkd.encoder.spec, "vqkd", about)
    loaded = load_encoder(tmp_path / "encoder.pt").encoder
    assert isinstance(loaded, VQKDTokenizer)
    assert loaded.encoder.mean == loaded.encoder.std == (0.5, 0.5, 0.5)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded.tokens(images), vqkd.eval().encoder.tokens(images))


def test_vqkd_loss_is_cosine_distance_and_commitment(vqkd: VQKD) -> None:
    views = [torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)]
    vqkd.progress = 0.5  # no k-means
    z = vqkd.encoder.project(views[0])
    rounded = vqkd.quantize.weight[(z @ vqkd.quantize.weight.T).argmax(dim=2)]
    tokens = vqkd.decoder(rounded.view(2, 4, 4, 8).permute(0, 3, 1, 2))[:, 1:]
    prediction = vqkd.decode_task_layer(tokens)  # type: ignore[misc]
    target = vqkd.teacher.patches(views[1])
    expected = (1 - F.cosine_similarity(prediction, target, dim=2)).mean() + (z - rounded).square().mean()
    before = vqkd.quantize.weight.clone()
    torch.testing.assert_close(vqkd.loss(views)["loss"], expected)
    assert not torch.equal(vqkd.quantize.weight, before)
    before = vqkd.eval().quantize.weight.clone()
    vqkd.loss(views)
    assert torch.equal(vqkd.quantize.weight, before)


def test_codebook_starts_with_k_means_once(vqkd: VQKD, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    start = vqkd.quantize.start
    monkeypatch.setattr(vqkd.quantize, "start", lambda z, draws: (started.append(len(z)), start(z, draws)))
    views = [torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)]
    for progress in (0.0, 0.0, 0.5):
        vqkd.progress = progress
        vqkd.loss(views)
    assert started == [32]


def test_finish_counts_codes_and_refuses_a_dead_codebook(vqkd: VQKD, tiny_data: Splits) -> None:
    facts = vqkd.finish(tiny_data.train)
    assert facts["codebook_size"] == 16 and 2 <= facts["codes_used"] <= 16 and facts["codes_measured_on"] == 48
    assert facts["teacher"]["source"] == "tests"
    vqkd.quantize.weight.copy_(vqkd.quantize.weight[:1].clone())
    with pytest.raises(RunError, match=r"collapsed: the perplexity of its 16 codes is 1\.0"):
        vqkd.finish(tiny_data.train)


def test_vqkd_needs_the_heads_of_a_block() -> None:
    with pytest.raises(UserError, match="decoder has the heads of a block"):
        VQKD(build_backbone("swin_nano_patch2_window2_16"), codebook_size=16)


def test_masks_are_filled_to_the_same_number(beit: BEiTv2) -> None:
    big = BEiTv2(ViT("vit_nano_patch16_224", mask_token=True), codebook_size=16)
    assert big.n_masked == 75
    assert (big.masks(16).sum(dim=1) == 75).all() and (beit.masks(8).sum(dim=1) == 6).all()
    mask = torch.rand(5, 30) < 0.2
    filled = fill_masks(mask, 12, torch.rand(5, 30))
    assert (filled.sum(dim=1) == 12).all() and (filled | ~mask).all()


def test_both_predictions_against_plain_layers(beit: BEiTv2) -> None:
    """The cls branch written out: the early block's patches, the last one's cls token, two more blocks."""
    images, pixels = torch.randn(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    nn.init.normal_(beit.backbone.rel_pos_bias.relative_position_bias_table)
    mask = torch.arange(32).view(2, 16) % 3 == 0
    beit.masks = lambda batch: mask  # type: ignore[assignment, method-assign]
    net = beit.backbone
    x, bias = net._embed(images, mask), net.rel_pos_bias()[None]
    outputs = []
    for block in net.blocks:
        x = block(x, attn_mask=bias)
        outputs.append(x)
    y = torch.cat([outputs[1][:, :1], outputs[0][:, 1:]], dim=1)  # early_layer 1 of 2
    for block in beit.cls_pt_layers:
        y = block(y, attn_mask=bias)
    codes = beit.frozen[0].tokens(pixels).flatten(1)[mask]
    terms = [masked_prediction(beit.lm_head(net.norm(z)[:, 1:][mask]), codes) for z in (outputs[1], y)]
    result = beit.loss([images, pixels])
    torch.testing.assert_close(result["loss"], terms[0]["loss"] + terms[1]["loss"])
    torch.testing.assert_close(result["cls_accuracy"], terms[1]["accuracy"])


def test_uniform_logits_are_at_chance(beit: BEiTv2) -> None:
    nn.init.zeros_(beit.lm_head.weight)
    loss = beit.loss([torch.randn(2, 3, 16, 16), torch.rand(2, 3, 16, 16)])["loss"]
    assert loss.item() == pytest.approx(2 * math.log(16), abs=1e-5)


def test_the_cls_token_gets_a_gradient_and_the_branch_can_be_left_out(beit: BEiTv2) -> None:
    views = [torch.randn(2, 3, 16, 16), torch.rand(2, 3, 16, 16)]
    beit.loss(views)["loss"].backward()
    assert all(p.grad is not None for p in beit.parameters() if p.requires_grad)
    assert all(p.grad is None for p in beit.frozen[0].parameters())
    assert not any("frozen" in key or "quantize" in key for key in beit.state_dict())
    plain = make(head_layers=0)
    plain.set_teacher("tokenizer", tokenizer())
    assert set(plain.loss(views)) == {"loss", "accuracy"}


def test_pixels_of_masked_patches_do_not_matter(beit: BEiTv2) -> None:
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 3] = True
    beit.masks = lambda batch: mask  # type: ignore[assignment, method-assign]
    images, pixels = torch.randn(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    loss = beit.loss([images, pixels])["loss"]
    images[:, :, :4, 12:] = 50.0
    assert beit.loss([images, pixels])["loss"] == loss


def test_blocks_of_the_branch_start_as_later_ones() -> None:
    """Truncated at one sigma; the projections into the residual stream divided by sqrt(2 (early + k))."""
    method = BEiTv2(ViT("vit_micro_patch8_32", **BEiTv2.backbone_options), codebook_size=16, min_block=1)
    assert method.early_layer == 3 and len(method.cls_pt_layers) == 2
    for i, block in enumerate(method.cls_pt_layers, start=4):
        weights = block.state_dict()
        assert weights["attn.qkv.weight"].std().item() == pytest.approx(0.0108, abs=3e-4)
        for name in ("attn.proj.weight", "mlp.fc2.weight"):
            assert weights[name].std().item() == pytest.approx(0.0108 / math.sqrt(2 * i), rel=0.05)
        assert not weights["mlp.fc1.bias"].any() and torch.equal(weights["ls1.gamma"], torch.full((96,), 0.1))
    assert BEiTv2(ViT("vit_micro_patch8_32", mask_token=True), min_block=1, early_layer=4).early_layer == 4
    with pytest.raises(UserError, match="early_layer is 5; vit_micro_patch8_32 has the blocks 1 to 4"):
        BEiTv2(ViT("vit_micro_patch8_32", mask_token=True), min_block=1, early_layer=5)


def test_views_are_one_crop_twice(beit: BEiTv2) -> None:
    image, tokens = beit.views
    assert (image.sides, tokens.sides, tokens.same) == ((16, 16), (16, 16), True)
    assert (tokens.mean, tokens.std) == ((0, 0, 0), (1, 1, 1)) and image.std != tokens.std
    for view in (image, tokens):
        assert (view.scale, view.flip, view.interpolation) == ((0.2, 1.0), 0.5, "bicubic")
        assert (view.jitter, view.jitter_p) == ((0.4, 0.4, 0.4, 0.0), 1.0)


def test_tokenizers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="codebook_size 32, the recipe says 16; add --set codebook_size=32"):
        make().set_teacher("tokenizer", tokenizer(32))
    with pytest.raises(UserError, match="is a Linear; BEiT v2 needs a VQ-KD"):
        make().set_teacher("tokenizer", nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"unknown tokenizer 'vqd'"):
        make(tokenizer="vqd").set_teacher("tokenizer", None)


def test_picture(beit: BEiTv2) -> None:
    shown = beit.show(torch.rand(2, 3, 16, 16))
    assert list(shown) == ["masked", "codes", "predicted codes"]
    assert all(picture.shape == (2, 3, 16, 16) for picture in shown.values())

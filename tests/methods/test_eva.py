"""EVA against the worked numbers of its code (baaivision/EVA, EVA-01) and the invariants of its loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.vit import ViT
from ssl_bench.data.datasets import Splits
from ssl_bench.methods.eva import EVA, cosine_loss
from ssl_bench.nn.optimizers import Training
from ssl_bench.teachers.clip_tower import CLIPTower
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.weights import weights_hash
from ssl_bench.views.make import make_views

STUDENT = torch.tensor([[1.0, 2, 3], [-1, 0.5, 0.25]])
TEACHER = torch.tensor([[2.0, 1, 0.5], [0.3, -0.2, 0.1]])
EVERY = torch.ones(1, 2, dtype=torch.bool)


def tower(backbone: str = "vit_nano_patch4_16", out_dim: int = 10) -> CLIPTower:
    torch.manual_seed(5)
    clip = CLIPTower(ViT(backbone), nn.Linear(24, out_dim, bias=False))
    return clip.eval().requires_grad_(False)


def make(backbone: str = "vit_nano_patch4_16", **keywords: Any) -> EVA:
    torch.manual_seed(0)
    method = EVA(ViT(backbone, **{**EVA.backbone_options, "drop_path": 0.0}), **{"min_block": 2, **keywords})
    method.set_teacher("teacher", tower())
    return method


@pytest.fixture
def eva() -> EVA:
    return make()


@pytest.mark.parametrize(("row", "cos"), [(0, 0.6415330), (1, -0.8748177)])
def test_cosine_numbers(row: int, cos: float) -> None:
    mask = torch.arange(2)[None] == row
    assert cosine_loss(STUDENT[None], TEACHER[None], mask).item() == pytest.approx(-cos, abs=1e-6)


def test_loss_numbers() -> None:
    assert cosine_loss(STUDENT[None], TEACHER[None], EVERY).item() == pytest.approx(0.11664233, abs=1e-6)


def test_loss_is_the_negative_of_what_the_released_mae_style_file_minimises() -> None:
    """That file returns +cosine although the authors' log is negative: released +0.37097916, correct -0.37097916."""
    prediction = torch.tensor([[[1.0, 2, 3], [-1, 0.5, 0.25], [0, 1, 0], [2, 2, 1]]])
    target = torch.tensor([[[2, 1, 0.5], [0.3, -0.2, 0.1], [1, 1, 0], [-1, 0, 1]]])
    mask = torch.tensor([[True, False, True, True]])
    released = F.cosine_similarity(prediction, target, dim=-1)[mask].mean()
    assert released.item() == pytest.approx(0.37097916, abs=1e-6)
    assert F.cosine_similarity(prediction, target, dim=-1)[0].tolist() == pytest.approx(
        [0.6415, -0.8748177, 0.7071, -0.2357], abs=5e-5
    )
    assert cosine_loss(prediction, target, mask).item() == pytest.approx(-0.37097916, abs=1e-6)


def test_perfect_prediction_is_minus_one_and_scale_does_not_matter() -> None:
    scales = torch.tensor([[[2.0], [0.1]]])
    assert cosine_loss(3 * TEACHER[None], TEACHER[None], EVERY).item() == pytest.approx(-1, abs=1e-6)
    loss = cosine_loss(STUDENT[None], TEACHER[None], EVERY)
    torch.testing.assert_close(cosine_loss(scales * STUDENT, TEACHER[None], EVERY), loss)
    torch.testing.assert_close(cosine_loss(STUDENT[None], scales * TEACHER, EVERY), loss)


def test_a_zero_vector_counts_as_zero() -> None:
    prediction = torch.tensor([[[0.0, 0, 0], [3, -2, 1]]], requires_grad=True)
    loss = cosine_loss(prediction, TEACHER[None], EVERY)
    loss.backward()
    assert loss.item() == pytest.approx(-0.5, abs=1e-6)
    assert prediction.grad is not None and torch.isfinite(prediction.grad).all()


def test_mean_is_over_all_masked_patches_not_over_images() -> None:
    prediction, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, True], [False, True, False]])
    cos = [float(p @ t / (p.norm() * t.norm())) for p, t in zip(prediction[mask], target[mask], strict=True)]
    assert cosine_loss(prediction, target, mask).item() == pytest.approx(-sum(cos) / 4, abs=1e-6)


def test_loss_is_in_float32_under_bf16() -> None:
    loss = cosine_loss(STUDENT[None].bfloat16(), TEACHER[None], EVERY)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(0.11664233, abs=1e-2)


@pytest.mark.parametrize(
    ("backbone", "ratio", "n_masked"),
    [("vit_nano_patch14_224", 0.41, 105), ("vit_nano_patch16_224", 0.4, 78), ("vit_nano_patch4_16", 0.41, 7)],
)
def test_number_of_masked_patches(backbone: str, ratio: float, n_masked: int) -> None:
    method = make(backbone, mask_ratio=ratio)
    assert method.n_masked == n_masked


def test_masks_are_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 x 16 patches: never more than 105, 104.4 on average, exactly 105 in about 65 %."""
    method = make("vit_nano_patch14_224", min_block=16)
    seen: list[Tensor] = []

    def zeros(self: ViT, images: Tensor, mask: Tensor) -> Any:
        seen.append(mask)
        raise StopIteration

    monkeypatch.setattr(ViT, "forward", zeros)
    method._teacher[0].__dict__["patches"] = lambda x: x
    with pytest.raises(StopIteration):
        method.loss([torch.zeros(2000, 1), torch.zeros(1)])
    counts = seen[0].sum(dim=1).float()
    assert seen[0].shape == (2000, 256) and counts.max() == 105 and counts.min() >= 85
    assert counts.mean().item() == pytest.approx(104.4, abs=0.3)
    assert (counts == 105).float().mean().item() == pytest.approx(0.65, abs=0.06)


def test_loss_by_hand(eva: EVA, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mask token, then positions, then cls; the head on masked patches alone; the teacher sees the whole image."""
    mask = torch.rand(3, 16) < 0.4
    monkeypatch.setattr("ssl_bench.methods.eva.block_masking", lambda *_: mask.view(3, 4, 4))
    images, seen = torch.randn(3, 3, 16, 16), torch.randn(3, 3, 16, 16)
    b: Any = eva.backbone
    for p in b.parameters():
        nn.init.normal_(p, std=0.2)
    x = b.patch_embed.proj(images).flatten(2).transpose(1, 2)
    x[mask] = b.mask_token[0, 0]
    x = torch.cat([b.cls_token.expand(3, -1, -1), x], dim=1) + b.pos_embed
    for block in b.blocks:
        x = block(x)
    assert eva.head is not None
    predicted = eva.head(b.norm(x)[:, 1:][mask])
    wanted = eva.teacher.patches(seen)[mask]
    expected = -torch.stack([p @ t / p.norm() / t.norm() for p, t in zip(predicted, wanted, strict=True)]).mean()
    torch.testing.assert_close(eva.loss([images, seen])["loss"], expected, rtol=1e-4, atol=1e-5)


def test_masked_pixels_do_not_reach_the_student(eva: EVA, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.rand(2, 16) < 0.5
    monkeypatch.setattr("ssl_bench.methods.eva.block_masking", lambda *_: mask.view(2, 4, 4))
    images = torch.randn(2, 3, 16, 16)
    pixels = mask.view(2, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = torch.where(pixels, 99.0, images)
    assert eva.loss([images, images])["loss"] == eva.loss([other, images])["loss"]
    assert eva.loss([images, images])["loss"] != eva.loss([images, other])["loss"]


def test_teacher_gets_no_gradient_and_is_no_part_of_the_method(eva: EVA) -> None:
    before = weights_hash(eva.teacher.network.state_dict())
    eva.train()
    optimizer = torch.optim.AdamW(eva.param_groups(), lr=0.1, weight_decay=0.05)
    eva.loss([torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)])["loss"].backward()
    optimizer.step()
    assert weights_hash(eva.teacher.network.state_dict()) == before and not eva.teacher.training
    own = {"head.weight", "head.bias"}
    assert {n for n in eva.state_dict() if not n.startswith("backbone.")} == own
    assert {n for n, _ in eva.named_parameters() if not n.startswith("backbone.")} == own
    assert eva.backbone.mask_token is not None and eva.backbone.mask_token.grad is not None


def test_views_are_one_crop_at_two_sizes() -> None:
    torch.manual_seed(0)
    method = EVA(ViT("vit_nano_patch4_16", **EVA.backbone_options), min_block=2)
    method.set_teacher("teacher", tower("vit_nano_patch8_16"))
    student, teacher = method.views
    assert (student.sides, teacher.sides, teacher.same) == ((16, 16), (32, 32), True)
    for view in (student, teacher):
        assert (view.scale, view.ratio, view.interpolation, view.flip) == ((0.2, 1), (3 / 4, 4 / 3), "bicubic", 0.5)
        assert (view.jitter_p, view.grayscale, view.blur, view.solarize) == (0, 0, 0, 0)
    ramp = torch.linspace(0, 255, 64).expand(8, 3, 64, 64).byte()
    small, large = make_views(ramp, method.views, torch.Generator().manual_seed(0))
    torch.testing.assert_close(F.avg_pool2d(large, 2), small, rtol=0, atol=0.05)


def test_head_is_as_wide_as_the_teacher_and_always_the_same() -> None:
    heads = []
    for draws in (0, 7):
        method = EVA(ViT("vit_nano_patch4_16", **EVA.backbone_options), min_block=2)
        torch.rand(draws)  # whatever is drawn while a teacher is made
        method.set_teacher("teacher", tower(out_dim=6))
        assert method.head is not None
        heads.append(method.head.weight.data)
    assert heads[0].shape == (6, 24) and torch.equal(*heads)
    assert heads[0].abs().max() <= 0.02
    assert make().head.weight.std().item() == pytest.approx(0.0108, rel=0.1)  # type: ignore[union-attr]


def test_a_saved_method_loads_without_its_teacher(eva: EVA) -> None:
    other = EVA(ViT("vit_nano_patch4_16", **EVA.backbone_options), min_block=2)
    other.load_state_dict(eva.state_dict())
    for name, value in eva.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_weight_decay_spares_vectors_positions_and_cls(eva: EVA) -> None:
    names = {id(p): n for n, p in eva.named_parameters()}
    groups = eva.param_groups()
    decayed = {names[id(p)] for group in groups if "weight_decay" not in group for p in group["params"]}
    spared = {names[id(p)] for group in groups if group.get("weight_decay") == 0 for p in group["params"]}
    assert {"head.weight", "backbone.mask_token", "backbone.patch_embed.proj.weight"} <= decayed
    assert {"backbone.pos_embed", "backbone.cls_token", "head.bias", "backbone.norm.weight"} <= spared
    assert sorted(decayed | spared) == sorted(names.values()) and not decayed & spared
    fixed = EVA(ViT("vit_nano_patch4_16", pos_embed="sincos_xy", mask_token=True), min_block=2)
    assert all(p.requires_grad for group in fixed.param_groups() for p in group["params"])


def test_facts_name_the_teacher(eva: EVA, tiny_data: Splits) -> None:
    assert eva.flags == [] and eva.finish(tiny_data.train)["teacher"]["sha256"] == weights_hash(tower().state_dict())


@pytest.mark.parametrize("min_block", [0, 8, 16])
def test_a_block_that_does_not_fit_is_refused(min_block: int) -> None:
    with pytest.raises(UserError, match=f"min_block {min_block} does not fit 7 masked patches of 4 x 4: .* 1 to 7"):
        EVA(ViT("vit_nano_patch4_16", mask_token=True), min_block=min_block)


def test_student_and_defaults_are_the_papers() -> None:
    b = ViT("vit_nano_patch4_16", **EVA.backbone_options)
    assert b.mask_token is not None and b.rel_pos_bias is None and b.pos_embed is not None and b.pos_embed.requires_grad
    assert b.pos_embed.shape[1] == 17 and isinstance(b.blocks[0].ls1, nn.Identity)
    assert EVA.backbone_options["drop_path"] == 0.1
    d: Training = EVA.defaults
    assert d.lr == pytest.approx(1e-3) and (d.betas, d.eps, d.clip_grad) == ((0.9, 0.98), 1e-6, 3.0)
    assert (d.epochs, d.warmup_epochs, d.weight_decay, d.min_lr) == (150, 2, 0.05, 1e-5)

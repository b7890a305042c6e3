"""iBOT against the worked numbers of its code (bytedance/ibot)."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from stubs import StubBackbone
from torch import Tensor, nn

from ssl_bench.backbones import build_backbone
from ssl_bench.backbones.backbone import Tokens
from ssl_bench.backbones.vit import ViT
from ssl_bench.methods.ibot import IBOT, patch_loss
from ssl_bench.nn.centering import dino_loss
from ssl_bench.nn.heads import IBOTHead
from ssl_bench.utils.errors import UserError
from ssl_bench.views.make import make_views
from ssl_bench.views.view import describe

# One image, two global crops and a local one, 2 x 2 patches, K = 3.
S_CLS = torch.tensor([[0.1, 0.2, 0.3], [0.3, -0.1, 0]])
S_LOCAL = torch.tensor([[0, 0.1, -0.2]])
T_CLS = torch.tensor([[0.02, 0.05, 0.01], [0.10, 0, -0.05]])
S_PATCHES = torch.tensor(
    [
        [[0.1, 0, -0.1], [0.2, 0.1, 0], [0, 0.3, 0.1], [-0.1, -0.2, 0.2]],
        [[0.05, 0, 0.1], [0.1, 0.1, 0.1], [0.2, -0.2, 0], [0.3, 0, -0.3]],
    ]
)
T_PATCHES = torch.tensor(
    [
        [[0.03, 0.01, 0], [0.05, 0.02, -0.01], [0, 0.04, 0.02], [0.01, 0, 0.06]],
        [[0.02, 0.02, 0.02], [0.01, 0.03, 0], [0.04, -0.02, 0.01], [0.05, 0, -0.04]],
    ]
)
MASK = torch.tensor([[True, False, True, False], [False, False, False, True]])
SMALL = {"out_dim": 16, "hidden_dim": 32, "bottleneck_dim": 8}


def make(name: str = "vit_nano_patch4_16", **settings: object) -> IBOT:
    torch.manual_seed(0)
    return IBOT(ViT(name, **IBOT.backbone_options), **{**SMALL, "n_local": 2, **settings})


def crops(n: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, size, size, generator=generator) for size in (16, 16, 8, 8)]


class _Says(StubBackbone):
    """A backbone with one answer for the global crops and one for the local crop."""

    def __init__(self, cls: Tensor, patches: Tensor, local: Tensor | None = None) -> None:
        super().__init__()
        self.cls, self.patches, self.local = cls, patches, local
        self.masks: list[Tensor | None] = []

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        self.masks.append(mask)
        if len(x) == 1:
            assert self.local is not None
            return Tokens(self.local, self.local[:, None])
        return Tokens(self.cls, self.patches)


class _Head(IBOTHead):
    """A head that changes nothing."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.batch_norm, self.last_layer = False, nn.Identity()  # type: ignore[assignment]
        self.last_layer2 = self.last_layer

    def project(self, x: Tensor) -> Tensor:
        return x


def worked(monkeypatch: pytest.MonkeyPatch, mask: Tensor = MASK, **settings: object) -> IBOT:
    """The worked example: the networks answer with the logits themselves."""
    ibot = make(out_dim=3, warmup_teacher_epochs=2, n_local=1, **settings)
    ibot.backbone = _Says(S_CLS.clone(), S_PATCHES.clone(), S_LOCAL.clone())  # type: ignore[assignment]
    ibot.teacher.backbone = _Says(T_CLS, T_PATCHES)  # type: ignore[assignment]
    ibot.head, ibot.teacher.head = _Head(), _Head()  # type: ignore[assignment]
    monkeypatch.setattr(ibot, "masks", lambda batch: mask)
    return ibot


VIEWS = [torch.zeros(1, 3, 8, 8)] * 3


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, [1.913195, 1.185650, 3.098845]), (1, [1.861522, 1.614087, 3.475609]), (3, [1.861522, 1.614087, 3.475609])],
)
def test_loss_numbers(monkeypatch: pytest.MonkeyPatch, epoch: int, expected: list[float]) -> None:
    ibot = worked(monkeypatch)
    ibot.epoch = epoch
    scalars = ibot.loss(VIEWS)
    assert [scalars[k].item() for k in ("cls_loss", "patch_loss", "loss")] == pytest.approx(expected, abs=1e-5)


def test_centre_numbers_and_second_call(monkeypatch: pytest.MonkeyPatch) -> None:
    ibot = worked(monkeypatch)
    ibot.loss(VIEWS)
    torch.testing.assert_close(ibot.center.center, torch.tensor([[0.006, 0.0025, -0.002]]), rtol=0, atol=1e-7)
    torch.testing.assert_close(ibot.center2.center, torch.tensor([[0.002625, 0.00125, 0.00075]]), rtol=0, atol=1e-7)
    scalars = ibot.loss(VIEWS)
    expected = [1.938440, 1.203274, 3.141713]
    assert [scalars[k].item() for k in ("cls_loss", "patch_loss", "loss")] == pytest.approx(expected, abs=1e-5)


def test_gradient_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    ibot = worked(monkeypatch)
    student: _Says = ibot.backbone  # type: ignore[assignment]
    student.patches.requires_grad_()
    student.local.requires_grad_()  # type: ignore[union-attr]
    ibot.loss(VIEWS)["loss"].backward()
    expected = torch.zeros(2, 4, 3)
    expected[0, 0] = torch.tensor([0.460542, -0.117569, -0.342973])
    expected[0, 2] = torch.tensor([-0.360784, 0.843286, -0.482502])
    expected[1, 3] = torch.tensor([1.159449, -0.792612, -0.366837])
    assert student.patches.grad is not None and student.local is not None and student.local.grad is not None
    torch.testing.assert_close(student.patches.grad, expected, rtol=0, atol=1e-5)
    assert (student.patches.grad[~MASK] == 0).all()
    local = torch.tensor([[-1.605444, 1.982797, -0.377353]])
    torch.testing.assert_close(student.local.grad, local, rtol=0, atol=1e-5)


def test_the_global_crops_of_the_student_alone_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    ibot = worked(monkeypatch)
    ibot.loss(VIEWS)
    first, local = ibot.backbone.masks  # type: ignore[union-attr]
    assert first is MASK and local is None
    assert ibot.teacher.backbone.masks == [None]  # type: ignore[union-attr]


def test_no_mask_gives_no_patch_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    scalars = worked(monkeypatch, torch.zeros(2, 4, dtype=torch.bool)).loss(VIEWS)
    assert scalars["patch_loss"].item() == 0 and scalars["cls_loss"].item() == pytest.approx(1.913195, abs=1e-5)


def test_without_the_local_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worked(monkeypatch).loss(VIEWS[:2])["cls_loss"].item() == pytest.approx(2.565024, abs=1e-5)


def test_weights_of_the_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = worked(monkeypatch, lambda1=0.5, lambda2=2.0).loss(VIEWS)["loss"].item()
    assert loss == pytest.approx(0.5 * 1.913195 + 2 * 1.185650, abs=1e-5)


def test_agreement_is_teachers_first_with_students_second(monkeypatch: pytest.MonkeyPatch) -> None:
    ibot = worked(monkeypatch)
    assert ibot.loss(VIEWS)["agreement"].item() == 0  # arg-max 1 and 0
    ibot.backbone.cls[1] = torch.tensor([0.0, 1.0, 0.0])  # type: ignore[union-attr,index,operator]
    assert ibot.loss(VIEWS)["agreement"].item() == 1


def test_teacher_patches_without_mask_move_the_centre_only(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = worked(monkeypatch), worked(monkeypatch)
    other = T_PATCHES.clone()
    other[0, 1] += torch.tensor([0.4, 0, 0])
    two.teacher.backbone.patches = other  # type: ignore[assignment]
    two.backbone.patches[0, 1] += 3  # type: ignore[union-attr,index,operator]
    assert one.loss(VIEWS)["loss"] == two.loss(VIEWS)["loss"]
    moved = two.center2.center - one.center2.center
    torch.testing.assert_close(moved, torch.tensor([[0.1 * 0.4 / 8, 0, 0]]))


def test_uniform_outputs_are_at_ln_k() -> None:
    k, mask = 8192, torch.tensor([[True, True, False], [False, True, False]])
    uniform = torch.full((2, 1, k), 1 / k)
    assert dino_loss(torch.zeros(3, 1, k), uniform, 0.1).item() == pytest.approx(9.010913, abs=1e-5)
    assert patch_loss(torch.zeros(3, k), uniform[:1, 0].expand(3, k), mask, 0.1).item() == pytest.approx(9.010913)
    mask[0] = False
    assert patch_loss(torch.zeros(1, k), uniform[0], mask, 0.1).item() == pytest.approx(9.010913 / 2)


def test_patch_loss_against_a_naive_formula() -> None:
    s, t = torch.randn(4, 6, 5, dtype=torch.float64), torch.rand(4, 6, 5, dtype=torch.float64)
    mask = torch.rand(4, 6) < 0.5
    mask[2] = False
    total = 0.0
    for i in range(4):
        terms = []
        for j in range(6):
            norm = math.log(sum(math.exp(x / 0.1) for x in s[i, j].tolist()))
            pairs = zip(t[i, j].tolist(), s[i, j].tolist(), strict=True)
            terms.append(mask[i, j].item() * -sum(p * (x / 0.1 - norm) for p, x in pairs))
        total += sum(terms) / max(1, mask[i].sum().item())
    assert patch_loss(s[mask], t[mask], mask, 0.1).item() == pytest.approx(total / 4, rel=1e-5)
    order = torch.tensor([3, 0, 2, 1])
    permuted = patch_loss(s[order][mask[order]], t[order][mask[order]], mask[order], 0.1)
    torch.testing.assert_close(permuted, patch_loss(s[mask], t[mask], mask, 0.1))


def test_student_learns_what_a_constant_teacher_says() -> None:
    ibot = make(momentum=1.0, center_momentum=1.0).eval()  # without drop path
    optimizer = torch.optim.AdamW(ibot.param_groups(), lr=3e-3, weight_decay=0.0)
    ibot.masks = lambda batch: torch.arange(16).expand(8, 16) % 3 == 0  # type: ignore[method-assign]
    losses: list[tuple[float, float]] = []
    for _ in range(80):
        scalars = ibot.loss(crops()[:2])
        optimizer.zero_grad()
        scalars["loss"].backward()
        optimizer.step()
        ibot.after_step()
        losses.append((scalars["kl"].item(), scalars["patch_loss"].item()))
    assert losses[-1][0] < 0.3 * losses[0][0] and losses[-1][1] < 0.5 * losses[0][1]


@pytest.mark.parametrize("shared", [True, False])
def test_whole_loss_against_heads_on_all_tokens(shared: bool) -> None:
    """Head and loss run on masked tokens, and the centre of all patches comes through the linear last layer."""
    ibot = make(shared_head=shared, shared_head_teacher=shared, norm_last_layer=False).eval()
    for p in ibot.teacher.parameters():
        p.data += 0.05 * torch.randn_like(p)
    ibot.center.center.normal_(std=0.05)
    ibot.center2.center.normal_(std=0.05)
    before = ibot.center2.center.clone()
    views, mask = crops(), torch.rand(8, 16) < 0.3
    ibot.masks = lambda batch: mask  # type: ignore[method-assign]
    with torch.no_grad():
        student, teacher = ibot.backbone(torch.cat(views[:2]), mask=mask), ibot.teacher.backbone(torch.cat(views[:2]))
        s = ibot.head.last_layer2(ibot.head.project(student.patches))
        t = ibot.teacher.head.last_layer2(ibot.teacher.head.project(teacher.patches))
        p = ((t - before) / 0.04).softmax(-1)
        each = -(p * (s / 0.1).log_softmax(-1)).sum(-1)
        per_image = (each * mask).sum(1) / mask.sum(1).clamp(min=1)
        scalars = ibot.loss(views)
    torch.testing.assert_close(scalars["patch_loss"], per_image.view(2, 4).mean(1).mean())
    expected = 0.9 * before + 0.1 * t.mean(dim=1).mean(dim=0)
    torch.testing.assert_close(ibot.center2.center, expected, rtol=1e-4, atol=1e-6)


def test_masks_of_the_paper() -> None:
    """14 x 14 patches: half of the crops without mask, the others near 0.3; never above the drawn ratio."""
    ibot = make("vit_nano_patch16_224")
    mask = ibot.masks(1000)
    assert mask.shape == (2000, 196) and mask.dtype == torch.bool
    ratio = mask.float().mean(dim=1)
    masked = ratio[ratio > 0]
    assert (ratio == 0).float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert masked.mean().item() == pytest.approx(0.298, abs=0.01)
    assert masked.max() <= 0.5 and masked.min() >= 0.05
    both = (ratio.view(2, 1000) == 0).float()
    assert both.prod(0).mean().item() == pytest.approx(0.25, abs=0.05)  # the two crops draw on their own


def test_masks_of_one_ratio() -> None:
    ratio = make("vit_nano_patch16_224", pred_ratio=[0.3], pred_ratio_var=[0.0]).masks(300).float().mean(dim=1)
    assert ratio.mean().item() == pytest.approx(0.292, abs=0.004) and ratio.max() <= 0.3 and ratio.min() > 0.2


@pytest.mark.parametrize(("ratio", "cells"), [(0.3, 58), (0.7, 137), (0.0, 0)])
def test_random_masks_have_the_exact_count(ratio: float, cells: int) -> None:
    mask = make("vit_nano_patch16_224", pred_shape="rand", pred_ratio=[ratio], pred_ratio_var=[0.0]).masks(50)
    assert (mask.sum(dim=1) == cells).all()
    if cells:
        assert len(mask.unique(dim=0)) == 100 and mask.float().mean(dim=0).std() < 0.1


def test_a_fixed_ratio_is_rounded_down_as_a_double() -> None:
    """0.57 * 10 * 10 is 56.99... in double, as in ``loader.py``; in single precision it is 57."""
    ibot = make("vit_nano_patch4_40", pred_shape="rand", pred_ratio=[0.57], pred_ratio_var=[0.0])
    assert (ibot.masks(2).sum(dim=1) == 56).all()


def test_random_masks_of_the_released_models() -> None:
    ibot = make("vit_nano_patch16_224", pred_shape="rand", pred_ratio=[0.0, 0.7], pred_ratio_var=[0.0, 0.05])
    count = ibot.masks(500).sum(dim=1)
    assert ((count == 0) | ((count >= 127) & (count <= 147))).all()
    assert (count == 0).float().mean().item() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("name", ["vit_nano_patch8_32", "vit_nano_patch4_16x24", "vit_nano_patch8_8"])
@pytest.mark.parametrize("shape", ["block", "rand"])
def test_masks_on_other_grids(name: str, shape: str) -> None:
    ibot = make(name, pred_shape=shape)
    rows, columns = ibot.backbone.mask_grid
    mask = ibot.masks(200)
    assert mask.shape == (400, rows * columns) and mask.sum(dim=1).max() <= 0.5 * rows * columns
    assert mask.any() == (rows > 1)


def test_prediction_starts_late(monkeypatch: pytest.MonkeyPatch) -> None:
    ibot = make(pred_start_epoch=2)
    for epoch, masked in ((0.0, False), (1.99, False), (2.0, True)):
        ibot.epoch = epoch
        assert ibot.masks(50).any() == masked
    late = worked(monkeypatch, pred_start_epoch=2)  # its patch temperature is in the first epoch of the warm-up
    late.epoch = 2
    scalars = late.loss(VIEWS)
    assert scalars["patch_loss"].item() == pytest.approx(1.185650, abs=1e-5)
    assert scalars["cls_loss"].item() == pytest.approx(1.861522, abs=1e-5)


def test_mask_token_starts_at_zero_and_is_the_students_alone() -> None:
    ibot = make()
    token = ibot.backbone.mask_token
    assert token is not None and not token.any() and ibot.teacher.backbone.mask_token is None
    assert any(p is token for p in ibot.param_groups()[0]["params"])
    for mask, touched in ((torch.zeros(8, 16, dtype=torch.bool), False), (torch.ones(8, 16, dtype=torch.bool), True)):
        ibot.masks = lambda batch, mask=mask: mask  # type: ignore[method-assign,misc]
        ibot.zero_grad()
        ibot.loss(crops())["loss"].backward()
        assert token.grad is not None and bool(token.grad.any()) == touched
    assert all(p.grad is None for p in ibot.teacher.parameters())


def test_heads() -> None:
    both = make()
    assert both.head.last_layer2 is both.head.last_layer
    assert both.teacher.head.last_layer2 is both.teacher.head.last_layer
    keys = [k for k in both.head.state_dict() if "last_layer" in k]
    assert len(keys) == 4 and sum("last_layer" in n for n, _ in both.head.named_parameters()) == 2  # listed once
    own = make(shared_head=False, shared_head_teacher=False)
    assert own.head.last_layer2 is not own.head.last_layer
    assert own.teacher.head.last_layer2 is not own.teacher.head.last_layer
    with pytest.raises(UserError, match="shared_head_teacher"):
        make(shared_head=True, shared_head_teacher=False)


def test_a_shared_teacher_starts_as_the_students_second_layer() -> None:
    """``main_ibot.py`` loads the student's state dict, where the second layer comes last; the average goes by name."""
    ibot = make(shared_head=False, shared_head_teacher=True)
    assert torch.equal(ibot.teacher.head.last_layer.weight_v, ibot.head.last_layer2.weight_v)
    assert not torch.equal(ibot.teacher.head.last_layer.weight_v, ibot.head.last_layer.weight_v)


def test_batch_norm_numbers_of_the_official_head() -> None:
    """``models/head.py`` with norm "bn": one batch norm in two places, over all tokens of the images."""
    head = IBOTHead(3, 5, 2, 4, norm_last_layer=False, shared=True, batch_norm=True)
    for k, p in enumerate(p for n, p in head.named_parameters() if "weight_g" not in n):
        p.data = (torch.arange(p.numel()).double() * (k + 1 + (k == 8)) * 0.7).sin().view_as(p).float()
    tokens = (torch.arange(30) * 1.3).cos().view(2, 5, 3)
    cls, patches, mask = tokens[:, 0], tokens[:, 1:], torch.zeros(2, 4, dtype=torch.bool)
    mask[0, 2] = mask[0, 0] = True
    logits, masked = head.of_image_and_masked(cls, patches, mask)
    expected = [[-0.811557, -0.970024, 0.373431, 0.990004], [-0.871849, -0.936733, 0.474905, 0.968000]]
    torch.testing.assert_close(logits, torch.tensor(expected), rtol=0, atol=1e-5)
    expected = [[0.268243, 0.909059, 0.288385, -0.860913], [-0.999316, -0.673050, 0.824720, 0.746165]]
    torch.testing.assert_close(masked, torch.tensor(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(head.of_images(lambda images: (cls, patches), tokens), logits)
    norm = head.mlp[1]
    mean = [-0.137215, 0.107427, 0.385128, -0.142061, -0.456300]  # after two calls, four updates
    torch.testing.assert_close(norm.running_mean, torch.tensor(mean), rtol=0, atol=1e-5)
    var = [0.817796, 0.865823, 0.837347, 0.836539, 0.869157]
    torch.testing.assert_close(norm.running_var, torch.tensor(var), rtol=0, atol=1e-5)
    assert sum(k.endswith("running_mean") for k in head.state_dict()) == 2  # as in the official state dict


@pytest.mark.parametrize("masked", [0, 1, 5])
def test_batch_norm_with_few_masked_patches(masked: int) -> None:
    ibot = make(batch_norm=True)
    mask = torch.arange(8 * 16).view(8, 16) < masked
    ibot.masks = lambda batch: mask  # type: ignore[method-assign]
    scalars = ibot.loss(crops())
    scalars["loss"].backward()
    assert torch.isfinite(scalars["loss"]) and (scalars["patch_loss"].item() == 0) == (masked == 0)
    assert all(p.grad is None or p.grad.isfinite().all() for p in ibot.parameters())


@pytest.mark.parametrize(("shared", "shared_teacher"), [(True, True), (False, True), (False, False)])
def test_teacher_follows_by_name(shared: bool, shared_teacher: bool) -> None:
    ibot = make(shared_head=shared, shared_head_teacher=shared_teacher, norm_last_layer=False)
    before = copy.deepcopy(ibot.teacher.state_dict())
    for p in [*ibot.backbone.parameters(), *ibot.head.parameters()]:
        p.data += torch.randn_like(p)
    ibot.progress = 0.5
    ibot.after_step()
    student = {**dict(ibot.named_parameters())}
    for name, p in ibot.teacher.named_parameters():
        torch.testing.assert_close(p, 0.998 * before[name] + 0.002 * student[name], rtol=1e-5, atol=1e-6)


def test_frozen_epoch_keeps_both_last_layers() -> None:
    ibot = make(shared_head=False, shared_head_teacher=True)
    optimizer = torch.optim.AdamW(ibot.param_groups(), lr=0.1, weight_decay=0.4)
    before = copy.deepcopy(ibot.head.state_dict())
    ibot.masks = lambda batch: torch.ones(8, 16, dtype=torch.bool)  # type: ignore[method-assign]
    for epoch, frozen in ((0.5, True), (1.0, False)):
        ibot.epoch = epoch
        optimizer.zero_grad()
        ibot.loss(crops())["loss"].backward()
        ibot.before_step()
        optimizer.step()
        for key, old in before.items():
            assert torch.equal(old, ibot.head.state_dict()[key]) == (frozen and "last_layer" in key), key


@pytest.mark.parametrize(
    "settings",
    [
        {"pred_ratio": [0.3]},
        {"pred_ratio": [0.1], "pred_ratio_var": [0.2]},
        {"pred_ratio": [0.9], "pred_ratio_var": [0.2]},
        {"pred_ratio": [], "pred_ratio_var": []},
    ],
)
def test_wrong_ratios(settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match="pred_ratio"):
        make(**settings)


def test_needs_a_mask_token() -> None:
    with pytest.raises(UserError, match="mask_token"):
        IBOT(ViT("vit_nano_patch4_16"))


@pytest.mark.parametrize("name", ["vit_nano_patch4_16x24", "vit_nano_patch8_8"])
@pytest.mark.parametrize("n_local", [0, 3])
def test_other_shapes_train(name: str, n_local: int) -> None:
    ibot = make(name, n_local=n_local)
    images = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8)
    loss = ibot.loss(make_views(images, ibot.views, torch.Generator().manual_seed(0)))["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in ibot.parameters() if p.requires_grad)


def test_loss_is_in_fp32_under_autocast() -> None:
    full = make().eval().loss(crops())
    other = make().eval()
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = other.loss(crops())
    assert half["loss"].dtype == other.center2.center.dtype == torch.float32
    torch.testing.assert_close(half["cls_loss"], full["cls_loss"], rtol=0.02, atol=0)


def test_views_and_defaults_are_the_released_vit_s() -> None:
    ibot = make("vit_nano_patch16_224", n_local=10)
    assert describe(ibot.views) == "2x224 + 10x96"
    assert [v.scale for v in ibot.views] == [(0.25, 1.0), (0.25, 1.0), (0.05, 0.25)]
    assert [v.blur for v in ibot.views] == [1.0, 0.1, 0.5] and [v.solarize for v in ibot.views] == [0, 0.2, 0]
    config = ibot.training_config
    assert config.lr == pytest.approx(2e-3) and (config.epochs, config.clip_grad) == (800, 3.0)
    assert ibot.encoder is ibot.teacher.backbone


def test_cells_of_swin_are_tokens_of_its_last_stage() -> None:
    """32 pixels at the paper's size; masked pixels there don't matter to the student."""
    torch.manual_seed(0)
    ibot = IBOT(build_backbone("swin_tiny_patch4_window7_224", mask_token=True), **SMALL)
    assert ibot.backbone.mask_grid == (7, 7) and ibot.masks(3).shape == (6, 49)
    assert describe(ibot.views) == "2x224 + 10x96"
    assert ibot.backbone.mask_token is not None and not ibot.backbone.mask_token.any()
    ibot.epoch, ibot.pred_start_epoch = 49.9, 50
    assert not ibot.masks(8).any()
    small = build_backbone("swin_micro_patch2_window4_32", mask_token=True)
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 5] = True
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[..., 8:16, 8:16] = 3
    torch.testing.assert_close(small(changed, mask=mask).patches, small(images, mask=mask).patches)

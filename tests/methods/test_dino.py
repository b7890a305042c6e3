"""DINO against the worked numbers of its code (facebookresearch/dino)."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from stubs import StubBackbone
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Tokens
from ssl_bench.backbones.vit import ViT
from ssl_bench.methods.dino import DINO
from ssl_bench.nn.centering import Center, dino_loss, temperature_at
from ssl_bench.nn.heads import DINOHead, WeightNormLinear
from ssl_bench.nn.optimizers import clip_each
from ssl_bench.nn.schedules import cosine
from ssl_bench.utils.errors import UserError
from ssl_bench.views.make import make_views
from ssl_bench.views.multicrop import multicrop
from ssl_bench.views.view import describe

# Two images, two global crops and a local one, K = 3; crop by crop.
S = torch.tensor(
    [[0.1, 0.2, 0.3], [0.3, -0.1, 0], [0, 0.1, -0.2], [0.2, 0.2, -0.1], [-0.3, 0.1, 0.4], [0.05, -0.05, 0.1]]
)
T = torch.tensor([[0.02, 0.05, 0.01], [0.10, 0, -0.05], [0.03, 0.04, 0.08], [0.06, -0.02, 0]])
SMALL = {"out_dim": 16, "hidden_dim": 32, "bottleneck_dim": 8}


def make(name: str = "vit_nano_patch4_16", **settings: object) -> DINO:
    torch.manual_seed(0)
    return DINO(ViT(name, **DINO.backbone_options), **{**SMALL, "n_local": 2, **settings})


def crops(n: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, size, size, generator=generator) for size in (16, 16, 8, 8)]


class _Pixels(StubBackbone):
    """A backbone whose cls token is the image itself."""

    def forward(self, x: Tensor) -> Tokens:
        return Tokens(x.flatten(1), x.flatten(1)[:, None])


class _Says(nn.Module):
    """A network with one answer."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer


@pytest.fixture
def worked() -> tuple[DINO, list[Tensor]]:
    """The worked example: views are the student's logits themselves."""
    dino = make(
        out_dim=3, teacher_temperature=0.07, warmup_teacher_epochs=3, warmup_teacher_temperature=0.04, n_local=1
    )
    dino.backbone, dino.head = _Pixels(), nn.Identity()  # type: ignore[assignment]
    dino.teacher.backbone, dino.teacher.head = _Pixels(), _Says(T)  # type: ignore[assignment]
    return dino, list(S.view(3, 2, 3, 1, 1))


@pytest.mark.parametrize(
    ("epoch", "losses"), [(0, (1.451887, 1.435199)), (0.99, (1.451887, 1.435199)), (4, (1.684690, 1.675101))]
)
def test_loss_numbers(worked: tuple[DINO, list[Tensor]], epoch: float, losses: tuple[float, float]) -> None:
    dino, views = worked
    dino.epoch = epoch
    assert [dino.loss(views)["loss"].item() for _ in range(2)] == pytest.approx(losses, abs=1e-5)


def test_centre_numbers(worked: tuple[DINO, list[Tensor]]) -> None:
    dino, views = worked
    for expected in ([0.00525, 0.00175, 0.001], [0.009975, 0.003325, 0.0019]):
        dino.loss(views)
        torch.testing.assert_close(dino.center.center, torch.tensor([expected]), rtol=0, atol=1e-7)


def test_gradient_numbers() -> None:
    student = S.clone().requires_grad_()
    targets = Center(3, 0.9).sharpen(T.requires_grad_(False), 0.04).unflatten(0, (2, 2))
    dino_loss(student.unflatten(0, (3, 2)), targets, 0.1).backward()
    expected = [
        [-0.103936, 0.027953, 0.075983],
        [0.250144, -0.103095, -0.147049],
        [0.003512, 0.202474, -0.205986],
        [-0.520786, 0.517014, 0.003772],
        [-0.535162, -0.838753, 1.373916],
        [-1.222013, 0.087544, 1.134470],
    ]
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.tensor(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(student.grad.sum(1), torch.zeros(6), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_local", [0, 1, 8])
def test_loss_against_a_naive_formula(n_local: int) -> None:
    s, p = torch.randn(2 + n_local, 5, 7, dtype=torch.float64), torch.rand(2, 5, 7, dtype=torch.float64)
    pairs = [(u, v) for u in range(2) for v in range(2 + n_local) if u != v]
    assert len(pairs) == 2 * n_local + 2
    total = 0.0
    for u, v in pairs:
        for b in range(5):
            norm = math.log(sum(math.exp(x / 0.1) for x in s[v, b].tolist()))
            total -= sum(q * (x / 0.1 - norm) for q, x in zip(p[u, b].tolist(), s[v, b].tolist(), strict=True)) / 5
    assert dino_loss(s, p, 0.1).item() == pytest.approx(total / len(pairs), rel=1e-5)


@pytest.mark.parametrize(("k", "expected"), [(3, 1.098612), (16, 2.772589), (4096, 8.317766), (65536, 11.090355)])
@pytest.mark.parametrize("temperature", [0.04, 0.07])
def test_uniform_outputs_are_at_ln_k(k: int, expected: float, temperature: float) -> None:
    targets = Center(k, 0.9).sharpen(torch.full((2, 1, k), 0.3), temperature)
    assert dino_loss(torch.ones(4, 1, k), targets, 0.1).item() == pytest.approx(expected, abs=1e-5)


def test_centre_takes_a_common_shift_away() -> None:
    center, shift = Center(3, 0.9), torch.tensor([[0.3, -0.1, 0.2]])
    before = center.sharpen(T, 0.04)
    center.center += shift
    torch.testing.assert_close(center.sharpen(T + shift, 0.04), before, rtol=1e-5, atol=1e-6)


def test_monitored_entropy_and_divergence(worked: tuple[DINO, list[Tensor]]) -> None:
    dino, views = worked
    scalars = dino.loss(views)
    p = (T / 0.04).softmax(1)
    assert scalars["teacher_entropy"].item() == pytest.approx(-(p * p.log()).sum(1).mean().item(), abs=1e-5)
    q = (S / 0.1).softmax(1).view(3, 2, 3)
    p = p.view(2, 2, 3)
    kl = [(p[u] * (p[u] / q[v]).log()).sum(1).mean() for u in range(2) for v in range(3) if u != v]
    assert scalars["kl"].item() == pytest.approx(torch.stack(kl).mean().item(), abs=1e-5)


@pytest.mark.parametrize(
    ("warmup", "expected"), [(3, [0.04, 0.055, 0.07, 0.07, 0.07]), (1, [0.04, 0.07]), (0, [0.07, 0.07])]
)
def test_teacher_temperatures(warmup: int, expected: list[float]) -> None:
    assert [temperature_at(e, 0.04, 0.07, warmup) for e in range(len(expected))] == pytest.approx(expected, abs=1e-9)


def test_schedule_numbers() -> None:
    config = replace(DINO.defaults, batch_size=1024, base_lr=5e-4, epochs=4, warmup_epochs=1)
    expected = [0, 0.001, 0.002, 0.002, 0.00193972, 0.00176616, 0.00150025, 0.00117406, 0.000826939, 0.00050075]
    expected += [0.000234839, 0.0000612776]
    assert [config.lr_at(i, 12) for i in range(12)] == pytest.approx(expected, abs=1e-8)
    decay = [0.04, 0.0537017, 0.0927208, 0.151117, 0.22, 0.288883, 0.347279, 0.386298]
    assert [cosine(i / 8, 0.04, 0.4) for i in range(8)] == pytest.approx(decay, abs=1e-6)
    momentum = [0.996, 0.99615224, 0.99658579, 0.99723463, 0.998, 0.99876537, 0.99941421, 0.99984776]
    assert [cosine(i / 8, 0.996, 1.0) for i in range(8)] == pytest.approx(momentum, abs=1e-8)


def test_clipping_numbers() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0, 4.0]), torch.tensor([2.0])
    clip_each([a, b], 3.0)
    torch.testing.assert_close(torch.cat([a.grad, b.grad]), torch.tensor([1.8, 2.4, 2.0]), rtol=0, atol=1e-5)


def test_last_layer_numbers() -> None:
    layer = WeightNormLinear(2, 2, train_norm=True)
    layer.weight_v.data.copy_(torch.tensor([[3.0, 4.0], [1.0, -1.0]]))
    x = F.normalize(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), dim=1)
    out = layer(x)
    torch.testing.assert_close(out, torch.tensor([[1, -0.141421], [0.6, 0.707107]]), rtol=0, atol=1e-5)
    layer.weight_g.data[0] = 2
    torch.testing.assert_close(layer(x), out * torch.tensor([2.0, 1.0]))


def test_last_layer_is_torchs_weight_norm() -> None:
    layer, oracle = WeightNormLinear(6, 5, train_norm=True), nn.Linear(6, 5, bias=False)
    oracle.weight.data.copy_(layer.weight_v.data)
    torch.nn.utils.parametrizations.weight_norm(oracle, dim=0)
    layer.weight_g.data.uniform_(0.5, 2)
    oracle.parametrizations.weight.original0.data.copy_(layer.weight_g.data)  # type: ignore[union-attr]
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), oracle(x))
    layer(x).square().sum().backward()
    oracle(x).square().sum().backward()
    for mine, theirs in (("weight_g", "original0"), ("weight_v", "original1")):
        torch.testing.assert_close(getattr(layer, mine).grad, getattr(oracle.parametrizations.weight, theirs).grad)


def test_head_layout_and_init() -> None:
    torch.manual_seed(0)
    head = DINOHead(384, 2048, 256, 512, norm_last_layer=True)
    shapes = {
        "mlp.0.weight": (2048, 384),
        "mlp.2.weight": (2048, 2048),
        "mlp.4.weight": (256, 2048),
        "last_layer.weight_g": (512, 1),
        "last_layer.weight_v": (512, 256),
    }
    state = head.state_dict()
    assert {k: tuple(v.shape) for k, v in state.items() if not k.endswith("bias")} == shapes
    assert all(not v.any() for k, v in state.items() if k.endswith("bias"))
    assert state["mlp.2.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    v = state["last_layer.weight_v"]
    assert v.abs().max() <= 1 / 16 and v.std().item() == pytest.approx(1 / 16 / 3**0.5, rel=0.02)
    assert (state["last_layer.weight_g"] == 1).all() and not head.last_layer.weight_g.requires_grad
    out = head(torch.randn(9, 384))
    assert out.abs().max() <= 1 + 1e-6  # cosines
    torch.testing.assert_close(head.project(torch.randn(9, 384)).norm(dim=1), torch.ones(9))


def test_parameter_groups() -> None:
    dino = DINO(ViT("vit_tiny_patch16_224", **DINO.backbone_options), out_dim=64)
    decayed, spared = dino.param_groups()
    assert (len(decayed["params"]), len(spared["params"])) == (55, 102)
    assert "weight_decay" not in decayed and spared["weight_decay"] == 0
    ids = {id(p) for p in decayed["params"]}
    for p in (dino.backbone.pos_embed, dino.backbone.cls_token, dino.head.last_layer.weight_v):
        assert id(p) in ids
    free = make(norm_last_layer=False)
    assert any(p is free.head.last_layer.weight_g for p in free.param_groups()[0]["params"])


def test_drop_path_is_the_students_alone() -> None:
    dino = DINO(ViT("vit_tiny_patch16_224", **DINO.backbone_options), out_dim=8)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in dino.backbone.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)], abs=1e-6) and rates[-1] == pytest.approx(0.1)
    dropped = [m.drop_prob for m in dino.teacher.modules() if isinstance(m, DropPath)]
    assert dropped and not any(dropped)
    assert dino.teacher.training  # stays in train mode, which changes nothing


def test_centre_is_that_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_bench.nn.centering.all_mean", lambda x: x + 1)
    center = Center(3, 0.9)
    center.update(T)
    torch.testing.assert_close(center.center, torch.tensor([[0.10525, 0.10175, 0.101]]))


def test_teacher_starts_equal_and_follows() -> None:
    dino = make()
    for name, p in dino.teacher.named_parameters():
        assert torch.equal(p, dict(dino.named_parameters())[name]) and not p.requires_grad
    before = copy.deepcopy(dict(dino.teacher.named_parameters()))
    for p in [*dino.backbone.parameters(), *dino.head.parameters()]:
        p.data += torch.randn_like(p)
    dino.progress = 0.25
    dino.after_step()
    m = 1 + 0.5 * (0.996 - 1) * (1 + math.cos(math.pi * 0.25))
    for name, p in dino.teacher.named_parameters():
        student = dict(dino.named_parameters())[name]
        torch.testing.assert_close(p, m * before[name] + (1 - m) * student, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_frozen_epoch_keeps_the_last_layer(norm_last_layer: bool) -> None:
    """Without gradient there is no weight decay either; zeros would shrink it by 4 %."""
    dino = make(norm_last_layer=norm_last_layer)
    optimizer = torch.optim.AdamW(dino.param_groups(), lr=0.1, weight_decay=0.4)
    before = copy.deepcopy(dino.head.state_dict())
    for epoch, frozen in ((0.99, True), (1.0, False)):
        dino.epoch = epoch
        optimizer.zero_grad()
        dino.loss(crops())["loss"].backward()
        dino.before_step()
        optimizer.step()
        after = dino.head.state_dict()
        assert torch.equal(after["last_layer.weight_v"], before["last_layer.weight_v"]) == frozen
        assert torch.equal(after["last_layer.weight_g"], before["last_layer.weight_g"]) == (frozen or norm_last_layer)
        assert not torch.equal(after["mlp.0.weight"], before["mlp.0.weight"])


def test_one_forward_a_crop_size_and_one_of_the_head() -> None:
    dino = make()
    calls: dict[str, list[int]] = {"student": [], "teacher": [], "head": []}
    for name, module in (("student", dino.backbone), ("teacher", dino.teacher.backbone), ("head", dino.head)):
        module.register_forward_hook(lambda m, args, out, name=name: calls[name].append(len(args[0])))
    dino.loss(crops(4))["loss"].backward()
    assert calls == {"student": [8, 8], "teacher": [8], "head": [16]}
    assert all(p.grad is None for p in dino.teacher.parameters())


def test_views_are_the_papers() -> None:
    first, second, local = make(n_local=8).views
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    assert (local.blur, local.solarize, local.scale, local.count) == (0.5, 0.0, (0.05, 0.4), 8)
    for view in (first, second, local):
        assert (view.interpolation, view.jitter, view.jitter_p) == ("bicubic", (0.4, 0.4, 0.2, 0.1), 0.8)
        assert (view.grayscale, view.flip, view.blur_sigma) == (0.2, 0.5, (0.1, 2.0))
    assert first.scale == second.scale == (0.4, 1.0)
    assert describe(make(n_local=0).views) == "2x16"


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("vit_nano_patch16_224", None, "2x224 + 10x96"),
        ("vit_nano_patch8_32", None, "2x32 + 10x16"),
        ("vit_nano_patch4_32", 16, "2x32 + 10x16"),
        ("vit_nano_patch4_16x24", None, "2x(16x24) + 10x(8x12)"),
        ("vit_nano_patch4_16x32", 12, "2x(16x32) + 10x(12x24)"),
        ("vit_nano_patch8_8", None, "12x8"),
    ],
)
def test_local_crops_have_the_images_shape(name: str, size: int | None, expected: str) -> None:
    assert describe(multicrop(ViT(name), 10, size, (0.4, 1), (0.05, 0.4), (0.1, 2))) == expected


def test_wrong_local_size() -> None:
    with pytest.raises(UserError, match="local_size is 10; it must be a multiple of the patch size 4"):
        make(local_size=10)


@pytest.mark.parametrize("name", ["vit_nano_patch4_16x24", "vit_nano_patch8_8"])
@pytest.mark.parametrize("n_local", [0, 3])
def test_other_shapes_train(name: str, n_local: int) -> None:
    dino = make(name, n_local=n_local)
    images = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8)
    loss = dino.loss(make_views(images, dino.views, torch.Generator().manual_seed(0)))["loss"]
    loss.backward()
    assert torch.isfinite(loss)


def test_loss_is_in_fp32_under_autocast() -> None:
    dino = make()
    full = dino.eval().loss(crops())["loss"]
    other = make().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = other.loss(crops())
        assert other.head.project(torch.randn(2, 24)).dtype == torch.float32
    assert half["loss"].dtype == other.center.center.dtype == torch.float32
    torch.testing.assert_close(half["loss"], full, rtol=0.02, atol=0)


def test_a_copy_works_on_its_own() -> None:
    dino = make()
    twin = copy.deepcopy(dino)
    twin.loss(crops())["loss"].backward()
    assert all(p.grad is None for p in dino.parameters()) and not dino.center.center.any() and twin.center.center.any()


def test_student_learns_what_a_constant_teacher_says() -> None:
    """With a moving centre the loss itself may rise: the teacher's first outputs are all alike, then spread out."""
    dino = make(momentum=1.0, center_momentum=1.0)
    nn.init.normal_(dino.head.last_layer.weight_v)  # another student than the one the teacher is a copy of
    optimizer, gaps = torch.optim.AdamW(dino.param_groups(), lr=3e-3, weight_decay=0.0), []
    for _ in range(40):
        scalars = dino.loss(crops()[:2])
        optimizer.zero_grad()
        scalars["loss"].backward()
        optimizer.step()
        dino.after_step()
        gaps.append(scalars["kl"].item())
    assert gaps[-1] < 0.3 * gaps[0]


def test_evaluators_see_the_teacher_and_its_names_are_timms() -> None:
    dino = make()
    assert dino.encoder is dino.teacher.backbone
    keys = set(dino.teacher.state_dict())
    assert {"backbone.blocks.0.attn.qkv.weight", "backbone.norm.weight", "head.mlp.4.bias"} <= keys
    assert "center.center" in dino.state_dict()


def test_defaults_are_the_100_epoch_recipe() -> None:
    config = DINO.defaults
    assert config.lr == pytest.approx(1e-3) and (config.min_lr, config.clip_grad, config.clip_per_tensor) == (
        1e-6,
        3.0,
        True,
    )
    assert (config.weight_decay, config.final_weight_decay, config.betas, config.eps) == (0.04, 0.4, (0.9, 0.999), 1e-8)

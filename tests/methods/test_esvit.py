"""EsViT against the worked numbers of its code (microsoft/esvit)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_bench.backbones import build_backbone, options_for
from ssl_bench.backbones.backbone import Tokens
from ssl_bench.methods import esvit
from ssl_bench.methods.dino import DINO
from ssl_bench.methods.esvit import EsViT, most_similar
from ssl_bench.nn.centering import Center

NAMES = ("vit_micro_patch8_32", "swin_micro_patch2_window4_32")
# One image, two global crops of two regions and a local one of one region, K = 3, two features.
S_CLS = torch.tensor([[0.1, 0.2, 0.3], [0.3, -0.1, 0], [0, 0.1, -0.2]])
T_CLS = torch.tensor([[0.02, 0.05, 0.01], [0.10, 0, -0.05]])
S_REGION = torch.tensor([[0.1, 0, -0.1], [0.2, 0.1, 0], [0.05, 0, 0.1], [0.2, -0.2, 0], [0.3, 0, -0.3]])
T_REGION = torch.tensor([[0.03, 0.01, 0], [0.05, 0.02, -0.01], [0, 0.04, 0.02], [0.01, 0, 0.06]])
S_FEATURE = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, -1], [2, 0.5]])
T_FEATURE = torch.tensor([[1, 0.2], [-0.5, 1], [0, 1], [1, 0]])


class _Shows(nn.Module):
    """A backbone whose tokens are given: of the two global crops, and of the local one."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features, self.embed_dim, self.name = features, 2, "given"

    def forward(self, x: Tensor) -> Tokens:
        rows = self.features[:4].unflatten(0, (2, 2)) if len(x) == 2 else self.features[None, 4:]
        return Tokens(rows[:, 0], rows)


class _Says(nn.Module):
    """A head whose logits are given, before a last layer that does nothing."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.last_layer = logits, nn.Identity()

    def project(self, x: Tensor) -> Tensor:
        return self.logits.view(*x.shape[:-1], -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def make(name: str = NAMES[0], **settings: Any) -> EsViT:
    torch.manual_seed(0)
    small = {"out_dim": 16, "hidden_dim": 32, "bottleneck_dim": 8, "n_local": 2}
    backbone = build_backbone(name)
    spec = options_for(type(backbone), EsViT.backbone_options | {"drop_path": 0.0})
    return EsViT(build_backbone(name, **spec), **{**small, **settings})


def worked(
    s_cls: Tensor = S_CLS,
    t_cls: Tensor = T_CLS,
    s_region: Tensor = S_REGION,
    t_region: Tensor = T_REGION,
    s_feature: Tensor = S_FEATURE,
    t_feature: Tensor = T_FEATURE,
) -> EsViT:
    method: Any = make(out_dim=s_cls.shape[1], n_local=1, warmup_teacher_epochs=2)
    method.backbone, method.head = _Shows(s_feature), nn.ModuleList([_Says(s_cls), _Says(s_region)])
    method.teacher.backbone = _Shows(t_feature)
    method.teacher.head = nn.ModuleList([_Says(t_cls), _Says(t_region)])
    return method


VIEWS = list(torch.zeros(3, 1, 3, 2, 2))


@pytest.mark.parametrize(("epoch", "losses"), [(0, (2.200495, 2.217106)), (3, (2.132849, 2.143592))])
def test_loss_numbers(epoch: float, losses: tuple[float, float]) -> None:
    method = worked()
    method.epoch = epoch
    assert [method.loss(VIEWS)["loss"].item() for _ in range(2)] == pytest.approx(losses, abs=1e-5)


def test_both_terms_and_centres() -> None:
    method = worked()
    found = method.loss(VIEWS)
    assert found["view_loss"].item() == pytest.approx(1.913195, abs=1e-5)
    assert found["region_loss"].item() == pytest.approx(2.487796, abs=1e-5)
    torch.testing.assert_close(method.center.center, torch.tensor([[0.006, 0.0025, -0.002]]), rtol=0, atol=1e-7)
    expected = torch.tensor([[0.00225, 0.00175, 0.00175]])
    torch.testing.assert_close(method.center_grid.center, expected, rtol=0, atol=1e-7)


def test_matches() -> None:
    g1, g2, local = S_FEATURE.split([2, 2, 1])
    t1, t2 = T_FEATURE.split([2, 2])
    found = [most_similar(s, t).tolist() for s, t in ((g2, t1), (local, t1), (g1, t2), (local, t2))]
    assert found == [[0, 0], [0], [1, 0], [1]]
    assert most_similar(S_FEATURE, torch.ones(7, 2)).tolist() == [0] * 5


def test_gradient_numbers() -> None:
    s_cls, s_region, s_feature = (x.clone().requires_grad_() for x in (S_CLS, S_REGION, S_FEATURE))
    worked(s_cls=s_cls, s_region=s_region, s_feature=s_feature).loss(VIEWS)["loss"].backward()
    expected = [
        [0.297161, 0.060578, -0.357738],
        [0.299323, -0.163595, -0.135728],
        [-0.108643, -0.065895, 0.174538],
        [0.241118, -0.172425, -0.068693],
        [1.537315, -0.431165, -1.106150],
    ]
    assert s_region.grad is not None and s_cls.grad is not None and s_feature.grad is None
    torch.testing.assert_close(s_region.grad, torch.tensor(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(s_cls.grad[0], torch.tensor([-1.018067, 0.213105, 0.804962]), rtol=0, atol=1e-5)


def test_uniform_logits_are_at_ln_k() -> None:
    s, t, r, q = torch.zeros(3, 7), torch.zeros(2, 7), torch.zeros(5, 7), torch.zeros(4, 7)
    assert worked(s, t, r, q).loss(VIEWS)["loss"].item() == pytest.approx(1.945910, abs=1e-5)


def test_invariances() -> None:
    loss = worked().loss(VIEWS)["loss"].item()
    scaled = worked(
        s_feature=S_FEATURE * torch.tensor([[3.0], [0.1], [7], [2], [9]]),
        t_feature=T_FEATURE * torch.tensor([[0.5], [2.0], [4], [1]]),
    )
    swap, order = torch.tensor([1, 0, 3, 2]), torch.tensor([1, 0, 3, 2, 4])
    teacher = worked(t_region=T_REGION[swap], t_feature=T_FEATURE[swap])
    student = worked(s_region=S_REGION[order], s_feature=S_FEATURE[order])
    for other in (scaled, teacher, student):
        assert other.loss(VIEWS)["loss"].item() == pytest.approx(loss, abs=1e-5)


def crops(batch: int = 3, n_local: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [32, 32] + [16] * n_local
    return [torch.randn(batch, 3, size, size, generator=generator) for size in sizes]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_local", [0, 2, 3])
def test_loss_against_a_naive_formula(name: str, n_local: int) -> None:
    method = make(name, n_local=n_local)
    nn.init.normal_(method.center_grid.center, std=0.1)
    views = crops(n_local=n_local)
    (view, region), (t_view, t_region) = method.head, method.teacher.head
    total, pairs = 0.0, [(u, v) for u in range(2) for v in range(len(views)) if u != v]
    for u, v in pairs:
        student, teacher = method.backbone(views[v]), method.teacher.backbone(views[u])
        p = method.center.sharpen(t_view(teacher.cls), 0.04)
        total -= (p * (view(student.cls) / 0.1).log_softmax(-1)).sum(-1).mean().item() / 2
        for b, i in itertools.product(range(len(views[0])), range(student.patches.shape[1])):
            feature = student.patches[b, i]
            cos = [(feature @ g / (feature.norm() * g.norm())).item() for g in teacher.patches[b]]
            best = teacher.patches[b, cos.index(max(cos))]
            target = method.center_grid.sharpen(t_region(best[None])[0], 0.04)
            log_q = (region(feature[None])[0] / 0.1).log_softmax(-1)
            total -= (target * log_q).sum().item() / 2 / student.patches[..., 0].numel()
    assert method.loss(views)["loss"].item() == pytest.approx(total / len(pairs), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_parts_give_the_loss_and_gradients_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the centre has moved before the parts are computed again."""
    whole, parts = make(name), make(name)
    for method in (whole, parts):
        method.loss(crops())  # the centres leave 0
    expected = whole.loss(crops())
    expected["loss"].backward()
    monkeypatch.setattr(esvit, "PART", 5 * 16)  # five regions at a time
    rows: list[int] = []
    parts.head[1].last_layer.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    found = parts.loss(crops())
    found["loss"].backward()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)
    for (key, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-7, msg=lambda text, key=key: f"{key}: {text}")
    assert max(rows) == 5
    torch.testing.assert_close(parts.center_grid.center, whole.center_grid.center)


def test_centre_is_the_mean_of_all_regions_of_the_teacher() -> None:
    method = make()
    views = crops()
    with torch.no_grad():
        logits = method.teacher.head[1](method.teacher.backbone(torch.cat(views[:2])).patches)
    method.loss(views)
    torch.testing.assert_close(method.center_grid.center[0], 0.1 * logits.mean(dim=(0, 1)), rtol=1e-4, atol=1e-7)


def test_matches_are_in_float32_and_carry_no_gradient() -> None:
    a, b = torch.randn(2, 9, 32, requires_grad=True), torch.randn(2, 7, 32)
    expected = most_similar(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(most_similar(a, b), expected) and not expected.requires_grad


def test_heads_are_two_and_their_last_layers_start_frozen() -> None:
    method = make()
    view, region = method.head
    assert not torch.equal(view.mlp[0].weight, region.mlp[0].weight)
    assert all(p.requires_grad for head in method.head for p in head.last_layer.parameters())
    for epoch, frozen in ((0.99, True), (1.0, False)):
        method.epoch = epoch
        method.zero_grad()
        method.loss(crops())["loss"].backward()
        method.before_step()
        assert all((p.grad is None) == frozen for head in method.head for p in head.last_layer.parameters())
    assert all(p.grad is None for p in method.teacher.parameters())


def test_teacher_follows_both_heads() -> None:
    method = make(momentum=0.5)
    before = {key: p.clone() for key, p in method.teacher.named_parameters()}
    for p in [*method.backbone.parameters(), *method.head.parameters()]:
        p.data += 1
    method.after_step()
    for key, p in method.teacher.named_parameters():
        torch.testing.assert_close(p, before[key] + 0.5)
    assert method.encoder is method.teacher.backbone and method.momentum == 0.5


def test_views_and_training_are_dinos() -> None:
    dino = DINO(build_backbone(NAMES[0]), out_dim=16, hidden_dim=8, bottleneck_dim=8)
    assert make(n_local=8).views == dino.views
    config = EsViT.defaults
    assert (config.epochs, config.batch_size, config.lr, config.clip_grad) == (300, 512, pytest.approx(1e-3), 3.0)


@pytest.mark.parametrize("name", NAMES)
def test_picture_puts_the_image_together_from_another_view(name: str) -> None:
    method = make(name)
    images = torch.rand(2, 3, 32, 32)
    shown = method.eval().show(images)
    other, found = shown["another view"], shown["its matches"]
    assert other.shape == found.shape == images.shape
    pieces = [other[0, :, y : y + 8, x : x + 8] for y in range(0, 32, 8) for x in range(0, 32, 8)]
    assert any(torch.equal(found[0, :, :8, :8], piece) for piece in pieces)


def test_center_is_a_buffer_of_each_term() -> None:
    assert isinstance(make().center_grid, Center)
    assert {"center.center", "center_grid.center"} <= set(make().state_dict())

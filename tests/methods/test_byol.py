"""BYOL against worked numbers and its invariants."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_bench.backbones import build_backbone
from ssl_bench.backbones.vit import ViT
from ssl_bench.methods.byol import BYOL, byol_loss

Z1 = torch.tensor([[1.0, 0, 0], [0, 2, 0], [1, 1, 1]])
Z2 = torch.tensor([[1, 0.5, 0], [0, 1, -1], [0.5, 1, 2]])


@pytest.fixture
def byol(nano: ViT) -> BYOL:
    torch.manual_seed(1)
    return BYOL(nano, hidden_dim=16, out_dim=8)


def images(n: int = 4, size: int = 16) -> list[torch.Tensor]:
    return [torch.randn(n, 3, size, size), torch.randn(n, 3, size, size)]


def test_loss_numbers() -> None:
    assert byol_loss(Z1, Z2).item() == pytest.approx(0.344366, abs=1e-5)
    assert (byol_loss(Z1, Z2) + byol_loss(Z2, Z1)).item() == pytest.approx(0.688732, abs=1e-5)
    assert byol_loss(Z1, Z1).item() == pytest.approx(0, abs=1e-6)
    assert byol_loss(Z1, -Z1).item() == pytest.approx(4, abs=1e-6)


def test_rows_may_be_scaled_and_targets_have_no_gradient() -> None:
    scaled = Z1 * torch.tensor([[1.0], [2.0], [3.0]])
    torch.testing.assert_close(byol_loss(scaled, 7 * Z2), byol_loss(Z1, Z2))
    p, z = Z1.clone().requires_grad_(), Z2.clone().requires_grad_()
    byol_loss(p, z).backward()
    assert z.grad is None and p.grad is not None
    torch.testing.assert_close((p.grad * Z1).sum(dim=1), torch.zeros(3), rtol=0, atol=1e-6)


def test_the_loss_crosses_the_views(byol: BYOL) -> None:
    """Each prediction meets the target of the other view; a view's own target does not matter to it."""
    for p in byol.target.head.parameters():
        nn.init.normal_(p)
    views = images()
    p1, p2 = (byol.predictor(byol.projector(byol.backbone(x).cls)) for x in views)
    z1, z2 = (byol.target.head(byol.target.backbone(x).cls) for x in views)
    expected = byol_loss(p1, z2) + byol_loss(p2, z1)
    torch.testing.assert_close(byol.loss(views)["loss"], expected)
    assert not torch.isclose(expected, byol_loss(p1, z1) + byol_loss(p2, z2))


def test_target_starts_equal_and_never_gets_a_gradient(byol: BYOL) -> None:
    online = [*byol.backbone.parameters(), *byol.projector.parameters()]
    for a, b in zip(online, byol.target.parameters(), strict=True):
        assert torch.equal(a, b)
    byol.loss(images())["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in byol.target.parameters())
    assert byol.target.training
    assert {name.split(".")[0] for name, p in byol.named_parameters() if p.grad is not None} == {
        "backbone",
        "projector",
        "predictor",
    }


def test_target_follows_after_the_step_at_the_schedules_momentum(byol: BYOL) -> None:
    """m = 1 - (1 - m0) (cos(pi k / K) + 1) / 2."""
    momenta = []
    for byol.progress in (0.0, 0.5, 1.0):
        momenta.append(byol.current_momentum)
    assert momenta == pytest.approx([0.996, 0.998, 1.0])
    byol.progress = 0.5
    before = byol.target.head[0].weight.clone()
    byol.projector[0].weight.data.add_(1.0)
    byol.after_step()
    torch.testing.assert_close(byol.target.head[0].weight, before + 0.002)


def test_running_statistics_of_the_target_are_its_own(byol: BYOL) -> None:
    byol.projector[1].running_mean.fill_(5.0)
    byol.after_step()
    assert not byol.target.head[1].running_mean.any()


def test_heads_end_without_batch_norm(byol: BYOL) -> None:
    for head in (byol.projector, byol.predictor):
        assert [type(layer).__name__ for layer in head] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
        assert head[0].bias is not None and head[3].bias is not None
    assert BYOL(ViT("vit_nano_patch4_16")).predictor[0].weight.shape == (4096, 256)


def test_a_collapse_shows(byol: BYOL) -> None:
    healthy = byol.loss(images(8))["projection_std"]
    nn.init.zeros_(byol.target.head[3].weight)
    assert byol.loss(images(8))["projection_std"].item() == pytest.approx(0, abs=1e-6) and healthy > 0.1


def test_views_are_the_asymmetric_pair(byol: BYOL) -> None:
    first, second = byol.views
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    for view in (first, second):
        assert (view.scale, view.interpolation, view.jitter) == ((0.08, 1.0), "bicubic", (0.4, 0.4, 0.2, 0.1))
        assert (view.jitter_p, view.grayscale, view.flip) == (0.8, 0.2, 0.5)


@pytest.mark.parametrize("name", ["swin_micro_patch2_window4_32", "hiera_micro_32", "timm:test_resnet_32"])
def test_other_networks(name: str) -> None:
    method = BYOL(build_backbone(name), hidden_dim=16, out_dim=8)
    method.loss(images(size=32))["loss"].backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_evaluators_see_the_online_encoder(byol: BYOL) -> None:
    assert byol.encoder is byol.backbone

"""SimCLR against worked numbers, a naive formula and its invariants."""

from __future__ import annotations

import math

import pytest
import torch

from ssl_bench.backbones import build_backbone
from ssl_bench.backbones.vit import ViT
from ssl_bench.methods.simclr import SimCLR, nt_xent

Z1 = torch.tensor([[1.0, 0, 0], [0, 2, 0], [1, 1, 1]])
Z2 = torch.tensor([[1, 0.5, 0], [0, 1, -1], [0.5, 1, 2]])
Z = torch.stack([Z1, Z2])


@pytest.fixture
def simclr(nano: ViT) -> SimCLR:
    torch.manual_seed(1)
    return SimCLR(nano, hidden_dim=16, out_dim=8)


@pytest.mark.parametrize(("temperature", "expected"), [(0.1, 0.178950), (0.2, 0.442575), (0.5, 0.930255)])
def test_loss_numbers(temperature: float, expected: float) -> None:
    assert nt_xent(Z, Z, temperature).item() == pytest.approx(expected, abs=1e-5)


def test_gradient_numbers() -> None:
    z = Z.clone().requires_grad_()
    nt_xent(z, z, 0.2).backward()
    expected = [[0, -0.053030, 0.151142], [0.186023, 0, 0.366643], [0.254386, 0.106287, -0.360673]]
    torch.testing.assert_close(z.grad[0], torch.tensor(expected), rtol=0, atol=1e-5)  # type: ignore[index]
    torch.testing.assert_close((z.grad * Z).sum(dim=2), torch.zeros(2, 3), rtol=0, atol=1e-5)  # orthogonal to z


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_equal_features_are_at_chance(temperature: float) -> None:
    ones = torch.ones(2, 4, 5)
    assert nt_xent(ones, ones, temperature).item() == pytest.approx(math.log(7), abs=1e-5)


def test_invariances() -> None:
    loss, order = nt_xent(Z, Z, 0.2), torch.tensor([2, 0, 1])
    for same in (Z.flip(0), Z[:, order], Z * torch.tensor([[[1.0], [2.0], [3.0]], [[0.5], [7.0], [1.0]]])):
        torch.testing.assert_close(nt_xent(same, same, 0.2), loss)


def test_against_a_naive_formula() -> None:
    """The second of two processes: its four anchors against eleven other views."""
    every = torch.randn(2, 6, 4, dtype=torch.float64)
    z = every[:, 3:]
    views = [v / v.norm() for v in every.flatten(0, 1)]
    total = 0.0
    for i in [3, 4, 5, 9, 10, 11]:
        partner = (i + 6) % 12
        others = [math.exp(float(views[i] @ views[j]) / 0.3) for j in range(12) if j != i]
        total += math.log(sum(others)) - float(views[i] @ views[partner]) / 0.3
    assert nt_xent(z, every, 0.3, rank=1).item() == pytest.approx(total / 6, abs=1e-5)


def test_the_loss_is_that_of_both_views(simclr: SimCLR) -> None:
    views = [torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)]
    z = simclr.projector(simclr.backbone(torch.cat(views)).cls)
    expected = nt_xent(torch.stack([z[:4], z[4:]]), torch.stack([z[:4], z[4:]]), 0.1)
    torch.testing.assert_close(simclr.loss(views)["loss"], expected)


def test_patch_projection_and_positions_stay_as_they_are(simclr: SimCLR) -> None:
    simclr.loss([torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)])["loss"].backward()
    frozen = {name for name, p in simclr.named_parameters() if not p.requires_grad}
    assert frozen == {"backbone.patch_embed.proj.weight", "backbone.patch_embed.proj.bias", "backbone.pos_embed"}
    assert all(p.grad is None for p in simclr.parameters() if not p.requires_grad)
    trained = SimCLR(ViT("vit_nano_patch4_16"), hidden_dim=16, out_dim=8, freeze_patch_embed=False)
    assert all(p.requires_grad for p in trained.backbone.patch_embed.parameters())


@pytest.mark.parametrize("name", ["swin_micro_patch2_window4_32", "hiera_micro_32", "timm:test_resnet_32"])
def test_other_networks(name: str) -> None:
    """Their patch projections are frozen as well; a convolutional network has none."""
    method = SimCLR(build_backbone(name), hidden_dim=16, out_dim=8)
    method.loss([torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)])["loss"].backward()
    frozen = {key.split(".")[1] for key, p in method.named_parameters() if not p.requires_grad}
    assert ("patch_embed" in frozen) == (not name.startswith("timm"))
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_views_are_two_of_a_kind(simclr: SimCLR) -> None:
    (view,) = simclr.views
    assert (view.count, view.scale, view.interpolation, view.flip) == (2, (0.08, 1.0), "bicubic", 0.5)
    assert (view.jitter, view.jitter_p, view.grayscale) == ((0.8, 0.8, 0.8, 0.2), 0.8, 0.2)
    assert (view.blur, view.blur_sigma, view.solarize) == (0.5, (0.1, 2.0), 0.0)


def test_weight_decay_spares_biases_and_norms(simclr: SimCLR) -> None:
    decayed, spared = simclr.param_groups()
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in spared["params"])
    assert spared["weight_decay"] == 0.0


def test_evaluators_see_the_encoder(simclr: SimCLR) -> None:
    assert simclr.encoder is simclr.backbone

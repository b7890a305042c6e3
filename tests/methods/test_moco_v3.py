"""MoCo v3 against the worked numbers of its code (facebookresearch/moco-v3)."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from stubs import StubBackbone
from torch import nn

from ssl_bench.backbones.backbone import Tokens
from ssl_bench.backbones.vit import ViT
from ssl_bench.methods.moco_v3 import MoCoV3, contrastive_loss

Q = torch.tensor([[1.0, 0, 0], [0, 2, 0], [1, 1, 1]])
K = torch.tensor([[1, 0.5, 0], [0, 1, -1], [0.5, 1, 2]])


@pytest.fixture
def moco(nano: ViT) -> MoCoV3:
    torch.manual_seed(1)
    return MoCoV3(nano, hidden_dim=16, out_dim=8)


@pytest.mark.parametrize(("temperature", "expected"), [(0.2, 0.125126), (1.0, 1.612648)])
def test_loss_numbers(temperature: float, expected: float) -> None:
    assert contrastive_loss(Q, K, temperature).item() == pytest.approx(expected, abs=1e-5)


def test_gradient_numbers() -> None:
    q = Q.clone().requires_grad_()
    contrastive_loss(q, K, 0.2).backward()
    expected = [[0, 0.0017, 0.0138], [0.0654, 0, 0.1309], [0.1049, 0.0125, -0.1174]]
    torch.testing.assert_close(q.grad, torch.tensor(expected), rtol=0, atol=5e-5)


def test_symmetric_loss_crosses_the_views() -> None:
    q2 = torch.tensor([[0.0, 1, 1], [1, -1, 0], [2, 0, 1]])
    k2 = torch.tensor([[1.0, 1, 0], [0, 0, 1], [1, 0, 1]])
    first, second = contrastive_loss(Q, k2, 0.2), contrastive_loss(q2, K, 0.2)
    assert first.item() == pytest.approx(0.684505, abs=1e-5)
    assert second.item() == pytest.approx(1.154711, abs=1e-5)
    assert (first + second).item() == pytest.approx(1.839216, abs=1e-5)
    assert contrastive_loss(q2, k2, 0.2).item() == pytest.approx(0.596876, abs=1e-5)  # of one view


@pytest.mark.parametrize(("n", "expected"), [(3, 0.439445), (4, 0.554518), (8, 0.831777)])
def test_equal_features_are_at_chance(n: int, expected: float) -> None:
    assert contrastive_loss(torch.ones(n, 5), torch.ones(n, 5), 0.2).item() == pytest.approx(expected, abs=1e-5)


def test_equal_features_of_the_papers_batch_are_at_chance() -> None:
    """Both terms, 4096 keys: 4 T ln 4096; of four images 1.109035."""
    for n, expected in ((4096, 6.654), (4, 1.109035)):
        loss = 2 * contrastive_loss(torch.ones(2, 5), torch.ones(n, 5), 0.2)
        assert loss.item() == pytest.approx(expected, abs=5e-4)


def test_equal_queries_and_keys_that_differ_from_image_to_image() -> None:
    assert contrastive_loss(torch.eye(4), torch.eye(4), 0.2).item() == pytest.approx(0.008005, abs=1e-6)


def test_heads_of_the_paper() -> None:
    """Without biases, and with a batch norm at the end that has no weights."""
    with torch.device("meta"):
        moco = MoCoV3(ViT("vit_nano_patch4_16"))
    shapes = {key: tuple(p.shape) for key, p in moco.projector.named_parameters() if p.ndim > 1}
    assert shapes == {"0.weight": (4096, 24), "3.weight": (4096, 4096), "6.weight": (256, 4096)}
    shapes = {key: tuple(p.shape) for key, p in moco.predictor.named_parameters() if p.ndim > 1}
    assert shapes == {"0.weight": (4096, 256), "3.weight": (256, 4096)}
    assert not any("bias" in key and p.ndim > 1 for key, p in moco.projector.named_parameters())
    last = MoCoV3(ViT("vit_nano_patch4_16"), hidden_dim=4, out_dim=2).projector[-1]
    assert not list(last.parameters())
    a = 1.2247426
    found = last(torch.tensor([[1.0, 2], [3, 6], [5, 4]]))
    torch.testing.assert_close(found, torch.tensor([[-a, -a], [0, a], [a, 0]]), rtol=0, atol=1e-5)


def test_against_a_naive_formula() -> None:
    q, k = torch.randn(6, 4, dtype=torch.float64), torch.randn(12, 4, dtype=torch.float64)
    total = 0.0
    for i in range(6):
        cos = [float(q[i] @ k[j] / (q[i].norm() * k[j].norm())) / 0.3 for j in range(12)]
        total += math.log(sum(map(math.exp, cos))) - cos[i + 6]  # the second of two processes
    assert contrastive_loss(q, k, 0.3, rank=1).item() == pytest.approx(2 * 0.3 * total / 6, abs=1e-5)


def test_invariances() -> None:
    order = torch.tensor([2, 0, 1])
    loss = contrastive_loss(Q, K, 0.2)
    torch.testing.assert_close(contrastive_loss(Q[order], K[order], 0.2), loss)
    torch.testing.assert_close(contrastive_loss(Q * 7, K * torch.tensor([[1.0], [2.0], [3.0]]), 0.2), loss)


class _Plain(StubBackbone):
    """The 2 x 2 linear encoder of the worked example."""

    def __init__(self, weight: list[list[float]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: torch.Tensor) -> Tokens:
        return Tokens(x @ self.weight.T, x[:, None])


def test_momentum_moves_between_queries_and_keys(moco: MoCoV3) -> None:
    online, target = _Plain([[1.0, 0.0], [0.0, 2.0]]), _Plain([[1.0, 1.0], [0.0, 1.0]]).requires_grad_(False)
    moco.backbone, moco.projector, moco.predictor = online, nn.Sequential(), nn.Sequential()  # type: ignore[assignment]
    moco.momentum_encoder = nn.ModuleList([target, nn.Sequential()])
    moco.momentum = 0.9
    x1, x2 = torch.eye(2), torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    loss = moco.loss([x1, x2])["loss"]
    loss.backward()
    q1, q2, k1, k2 = (x @ w for w in (online.weight.T, torch.tensor([[1.0, 0.0], [1.0, 1.0]])) for x in (x1, x2))
    late = contrastive_loss(q1, k2, 0.2) + contrastive_loss(q2, k1, 0.2)  # as if it moved after the keys
    assert late.item() == pytest.approx(0.535986, abs=1e-5)
    torch.testing.assert_close(target.weight.data, torch.tensor([[1.0, 0.9], [0.0, 1.1]]))
    assert loss.item() == pytest.approx(0.562589, abs=1e-5)
    expected = [[-0.2516, -0.2147], [0.1300, 0.1258]]
    torch.testing.assert_close(online.weight.grad, torch.tensor(expected), rtol=0, atol=1e-4)


def test_momentum_encoder_starts_equal_and_never_gets_a_gradient(moco: MoCoV3) -> None:
    online = [*moco.backbone.parameters(), *moco.projector.parameters()]
    for a, b in zip(online, moco.momentum_encoder.parameters(), strict=True):
        assert torch.equal(a, b)
    moco.loss([torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)])["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in moco.momentum_encoder.parameters())
    assert moco.momentum_encoder.training


def test_patch_projection_and_positions_stay_as_they_are(moco: MoCoV3) -> None:
    frozen = [*moco.backbone.patch_embed.parameters(), moco.backbone.pos_embed]
    before = copy.deepcopy([p.data for p in frozen])
    optimizer = torch.optim.AdamW(moco.param_groups(), lr=0.1, weight_decay=0.1)
    moco.loss([torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)])["loss"].backward()
    optimizer.step()
    assert all(p.grad is None and torch.equal(p.data, old) for p, old in zip(frozen, before, strict=True))


def test_weight_decay_covers_everything(moco: MoCoV3) -> None:
    (group,) = moco.param_groups()
    assert len(group["params"]) == sum(p.requires_grad for p in moco.parameters())


def test_views_are_the_asymmetric_pair(moco: MoCoV3) -> None:
    first, second = moco.views
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    for view in (first, second):
        assert (view.scale, view.interpolation, view.jitter) == ((0.08, 1.0), "bilinear", (0.4, 0.4, 0.2, 0.1))
        assert (view.jitter_p, view.grayscale, view.flip) == (0.8, 0.2, 0.5)


def test_evaluators_see_the_base_encoder(moco: MoCoV3) -> None:
    assert moco.encoder is moco.backbone

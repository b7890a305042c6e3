"""SwAV against worked numbers, and its invariants."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from ssl_bench.backbones import build_backbone
from ssl_bench.backbones.vit import ViT
from ssl_bench.methods.swav import SwAV, sinkhorn
from ssl_bench.nn.centering import dino_loss
from ssl_bench.utils.errors import UserError
from ssl_bench.views.view import describe

P = torch.tensor([[0.5, 0.1, -0.2], [0.2, 0.4, 0.1], [-0.1, 0.3, 0.6], [0, 0.2, 0.1]])
P2 = torch.tensor([[0.4, 0.2, -0.1], [0.1, 0.5, 0], [0, 0.2, 0.5], [0.1, 0.1, 0.2]])
P3 = torch.tensor([[0.3, 0, 0], [0, 0.3, 0], [0, 0, 0.3], [0.1, 0.2, 0.1]])


def make(name: str = "vit_nano_patch4_16", **changes: object) -> SwAV:
    torch.manual_seed(1)
    keywords = {"hidden_dim": 16, "out_dim": 8, "n_prototypes": 12, "n_local": 2} | changes
    return SwAV(build_backbone(name), **keywords)  # type: ignore[arg-type]


def crops(method: SwAV, n: int = 4, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sides = [view.sides for view in method.views for _ in range(view.count)]
    return [torch.randn(n, 3, *side, generator=generator) for side in sides]


@pytest.mark.parametrize(
    ("epsilon", "codes", "columns"),
    [
        (
            0.05,
            [
                [0.999488, 0.000512, 0],
                [0.011859, 0.987885, 0.000256],
                [0.000005, 0.023122, 0.976873],
                [0.011698, 0.974490, 0.013811],
            ],
            [1.023050, 1.986008, 0.990941],
        ),
        (
            0.5,
            [
                [0.602720, 0.246446, 0.150834],
                [0.313633, 0.425776, 0.260591],
                [0.140044, 0.283623, 0.576333],
                [0.278002, 0.377406, 0.344592],
            ],
            [1.334399, 1.333251, 1.332350],
        ),
    ],
)
def test_code_numbers(epsilon: float, codes: list[list[float]], columns: list[float]) -> None:
    found = sinkhorn(P, epsilon, 3)
    torch.testing.assert_close(found, torch.tensor(codes), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.sum(dim=0), torch.tensor(columns), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("views", "expected"), [([P, P2], 0.485685), ([P, P2, P3], 0.413282)])
def test_loss_numbers(views: list[torch.Tensor], expected: float) -> None:
    codes = torch.stack([sinkhorn(scores, 0.05, 3) for scores in (P, P2)])
    assert dino_loss(torch.stack(views), codes, 0.1).item() == pytest.approx(expected, abs=1e-5)


def test_uniform_scores_are_at_chance() -> None:
    zeros = torch.zeros(4, 3)
    torch.testing.assert_close(sinkhorn(zeros, 0.05, 3), torch.full((4, 3), 1 / 3))
    codes = torch.stack([sinkhorn(zeros, 0.05, 3)] * 2)
    assert dino_loss(torch.zeros(2, 4, 3), codes, 0.1).item() == pytest.approx(math.log(3), abs=1e-5)


def test_a_constant_changes_nothing() -> None:
    codes = sinkhorn(P, 0.05, 3)
    torch.testing.assert_close(sinkhorn(P + 0.3, 0.05, 3), codes, rtol=0, atol=1e-5)
    views, both = torch.stack([P, P2]), torch.stack([codes, codes])
    torch.testing.assert_close(dino_loss(views + 0.3, both, 0.1), dino_loss(views, both, 0.1))


def test_codes_are_balanced_distributions_without_gradient() -> None:
    scores = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)).clamp(-1, 1).requires_grad_()
    codes = sinkhorn(scores, 0.1, 50)
    assert not codes.requires_grad
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(24))
    torch.testing.assert_close(codes.sum(dim=0), torch.full((6,), 4.0), rtol=1e-2, atol=0)


def test_the_loss_swaps_the_crops() -> None:
    """Against a naive sum over pairs, from a method with local crops."""
    method = make()
    views = crops(method)
    z = F.normalize(
        method.projector(
            torch.cat([method.backbone(torch.cat(views[:2])).cls, method.backbone(torch.cat(views[2:])).cls])
        ),
        dim=1,
    )
    scores = (z @ method.prototypes.weight.T).unflatten(0, (4, 4))
    total = 0.0
    for u in (0, 1):
        q = sinkhorn(scores[u], 0.05, 3)
        for v in range(4):
            if v != u:
                total -= (q * (scores[v] / 0.1).log_softmax(dim=1)).sum(dim=1).mean().item()
    assert method.loss(views)["loss"].item() == pytest.approx(total / 6, abs=1e-5)


def test_prototypes_are_unit_vectors_and_wait_for_an_epoch() -> None:
    method = make()
    weight = method.prototypes.weight
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(12))
    assert method.prototypes.bias is None
    method.loss(crops(method))["loss"].backward()
    method.epoch = 0.9
    method.before_step()
    assert weight.grad is None
    method.loss(crops(method))["loss"].backward()
    method.epoch = 1.0
    method.before_step()
    assert weight.grad is not None
    weight.data.add_(weight.grad, alpha=-5.0)
    method.after_step()
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(12))


def test_queue_waits_for_its_epoch_and_until_it_is_full() -> None:
    """Until then the codes are those of the batch alone; then past projections make the batch larger."""
    method, plain = make(queue_length=10), make()
    method.epoch = plain.epoch = 14.9
    assert method.loss(crops(method))["loss"] == plain.loss(crops(plain))["loss"] and not method.queue.any()
    method.epoch = plain.epoch = 15.0
    seen = []
    for step in range(3):  # 4, 8, then 10 rows are there
        views = crops(method, seed=step)
        z = F.normalize(method.projector(method.backbone(torch.cat(views[:2])).cls), dim=1)
        torch.testing.assert_close(method.loss(views)["loss"], plain.loss(views)["loss"])
        seen.append(method.queue[0].any(dim=1).sum().item())
        assert z.shape == (8, 8)
    assert seen == [4, 8, 10]
    views, before = crops(method, seed=3), method.queue.clone()
    loss = method.loss(views)["loss"]
    assert not torch.isclose(loss, plain.loss(views)["loss"])
    torch.testing.assert_close(method.queue[:, 4:], before[:, :6])


def test_queue_rows_only_enlarge_the_assignment() -> None:
    method = make(queue_length=3)
    method.epoch = 20.0
    method.queue.copy_(F.normalize(torch.randn(2, 3, 8), dim=2))
    scores = torch.randn(4, 12).clamp(-1, 1)
    joint = sinkhorn(torch.cat([method.prototypes(method.queue[0]), scores]), 0.05, 3)
    torch.testing.assert_close(method.codes(scores, method.queue[0]), joint[3:])


def test_a_queue_survives_saving() -> None:
    assert "queue" in make(queue_length=3).state_dict() and make().queue.numel() == 0


def test_views_are_the_papers() -> None:
    method = SwAV(ViT("vit_nano_patch16_224"), hidden_dim=16)
    assert describe(method.views) == "2x224 + 6x96"
    first, local = method.views
    assert (first.scale, local.scale) == ((0.14, 1.0), (0.05, 0.14))
    for view in (first, local):
        assert (view.jitter, view.jitter_p, view.grayscale) == ((0.8, 0.8, 0.8, 0.2), 0.8, 0.2)
        assert (view.blur, view.solarize, view.interpolation, view.flip) == (0.5, 0.0, "bicubic", 0.5)


def test_hiera_has_no_local_crops() -> None:
    method = make("hiera_micro_32", n_local=0)
    views = crops(method)
    assert len(views) == 2
    method.loss(views)["loss"].backward()
    with pytest.raises(UserError, match="multi-crop needs a backbone that takes images of other sizes"):
        make("hiera_micro_32")


def test_an_epsilon_that_overflows_is_refused() -> None:
    with pytest.raises(UserError, match=r"epsilon is 0\.001; it must be at least 0\.02"):
        make(epsilon=0.001)

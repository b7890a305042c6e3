"""Schedules, parameter groups and LARS: the worked numbers of the official scripts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_bench.nn.optimizers import LARS, Training, build_optimizer, no_decay_on_vectors
from ssl_bench.nn.schedules import cosine, warmup_cosine
from ssl_bench.utils.errors import UserError


def test_moco_v3_learning_rate() -> None:
    epochs = [0, 0.5, 10, 39.5, 40, 40.5, 100, 170, 300]
    expected = [0, 3e-5, 6e-4, 2.37e-3, 2.4e-3, 2.3999781e-3, 2.0982129e-3, 1.2e-3, 0]
    assert [warmup_cosine(e, 2.4e-3, 40, 300) for e in epochs] == pytest.approx(expected, abs=1e-9)


def test_mae_finetune_learning_rate_with_a_floor() -> None:
    expected = [0, 0.001, 0.002, 0.001083038056, 1.546469288e-06]
    assert [warmup_cosine(e, 2e-3, 5, 100, 1e-6) for e in (0, 2.5, 5, 50, 99)] == pytest.approx(expected, abs=1e-11)


def test_moco_v3_momentum() -> None:
    expected = [0.99, 0.9914644661, 0.995, 0.9985355339, 0.9999997258, 1.0]
    assert [cosine(e / 300, 0.99, 1.0) for e in (0, 75, 150, 225, 299, 300)] == pytest.approx(expected, abs=1e-9)


def test_schedule_without_warmup_or_decay() -> None:
    assert warmup_cosine(0, 1.0, 0, 10) == 1.0
    assert warmup_cosine(5, 1.0, 10, 10) == 0.5  # warm-up all the way


def test_lars_numbers() -> None:
    w = nn.Parameter(torch.tensor([[1.0, 2.0], [2.0, 0.0]]))
    b = nn.Parameter(torch.tensor([0.5, -0.5]))
    lars = LARS([w, b], lr=6.4)
    steps = [
        ([[0.985127744, 2.0049574187], [1.9900851626, -0.0049574187]], [-0.14, 0.78]),
        ([[0.9569111686, 2.0143629438], [1.9712741124, -0.0143629438]], [-1.356, 3.212]),
    ]
    for expected_w, expected_b in steps:
        w.grad, b.grad = torch.tensor([[0.3, -0.1], [0.2, 0.1]]), torch.tensor([0.1, -0.2])
        lars.step()
        torch.testing.assert_close(w.data, torch.tensor(expected_w), rtol=0, atol=1e-6)
        torch.testing.assert_close(b.data, torch.tensor(expected_b), rtol=0, atol=1e-6)


def test_groups_cover_every_trainable_tensor_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    net[2].weight.requires_grad_(False)
    groups = no_decay_on_vectors(net.named_parameters(), 0.1)
    assert [len(g["params"]) for g in groups] == [1, 4]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_every_optimizer_lowers_a_quadratic(optimizer: str) -> None:
    p = nn.Parameter(torch.tensor([[3.0, -2.0]]))
    optim = build_optimizer([{"params": [p], "weight_decay": 0.0}], Training(optimizer=optimizer), lr=0.1)  # type: ignore[arg-type]
    for _ in range(20):
        optim.zero_grad()
        p.square().sum().backward()
        optim.step()
    assert p.square().sum() < 13


def test_lr_scales_with_the_batch() -> None:
    assert Training(base_lr=1.5e-4, batch_size=4096).lr == pytest.approx(2.4e-3)


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"base_lr": float("nan")}, {"batch_size": 0}])
def test_impossible_values(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Training(**wrong)  # type: ignore[arg-type]

"""Schedules, parameter groups and LARS: the worked numbers of the official scripts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from ssl_bench.nn.optimizers import LARS, Training, build_optimizer, no_decay_on_vectors, set_weight_decay
from ssl_bench.nn.schedules import Schedule, cosine, learning_rate, warmup_cosine
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


def test_warmup_with_the_peak_on_its_last_step_is_the_array_of_the_authors() -> None:
    """BEiT and EVA: numpy.linspace over the warm-up's steps, then a cosine over the others (utils.py of both)."""
    peak, end, per_epoch, epochs, warmup = 1.5e-3, 1e-5, 5, 8, 2
    rising, falling = warmup * per_epoch, (epochs - warmup) * per_epoch
    cosines = end + 0.5 * (peak - end) * (1 + np.cos(np.pi * np.arange(falling) / falling))
    expected = np.concatenate([np.linspace(0, peak, rising), cosines])
    steps = epochs * per_epoch
    common = {"peak": peak, "end": end, "epochs": epochs, "warmup": warmup}
    found = [learning_rate(i, steps, **common, schedule="step_inclusive") for i in range(steps)]
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[rising - 1] == found[rising] == peak
    later = [learning_rate(i, steps, **common) for i in range(steps)]
    assert later[rising - 1] == pytest.approx(0.9 * peak) and later[rising:] == pytest.approx(expected[rising:])


@pytest.mark.parametrize("per_epoch", [1, 7])
def test_epoch_schedule_is_that_of_timm_as_deit_steps_it(per_epoch: int) -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], lr=1e-3)
    scheduler = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-5, warmup_lr_init=1e-6, warmup_t=5)
    expected = []
    for epoch in range(300):  # train, then lr_scheduler.step(epoch)
        expected += [optimizer.param_groups[0]["lr"]] * per_epoch
        scheduler.step(epoch)
    n = 300 * per_epoch
    deit = {"peak": 1e-3, "end": 1e-5, "start": 1e-6, "epochs": 300, "warmup": 5}
    found = [learning_rate(i, n, **deit, schedule="epoch") for i in range(n)]
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("schedule", ["step", "step_inclusive", "epoch"])
def test_schedules_of_no_warmup_all_warmup_and_a_part_of_a_step(schedule: Schedule) -> None:
    assert learning_rate(0, 10, peak=1.0, epochs=10, warmup=0, schedule=schedule) == 1.0
    assert 0 < learning_rate(9, 10, peak=1.0, epochs=10, warmup=20, schedule=schedule) <= 1.0
    rates = [learning_rate(i, 3, peak=1.0, epochs=0.3, warmup=0.05, schedule=schedule) for i in range(3)]
    assert all(0 <= rate <= 1 for rate in rates) and (max(rates) > 0.7 or schedule == "epoch")


def test_weight_decay_that_starts_at_0_rises_and_exempt_groups_stay() -> None:
    net = nn.Linear(3, 3)
    config = Training(weight_decay=0.0, final_weight_decay=0.4)
    optimizer = build_optimizer(no_decay_on_vectors(net.named_parameters()), config, 0.1)
    found = []
    for step in (0, 4, 7):
        set_weight_decay(optimizer, config.weight_decay_at(step, 8))
        found.append([group["weight_decay"] for group in optimizer.param_groups])
    assert found == [pytest.approx([wd, 0.0], abs=1e-6) for wd in (0.0, 0.2, 0.384776)]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_groups_without_a_weight_decay_take_the_recipes(optimizer: str) -> None:
    p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    config = Training(optimizer=optimizer, weight_decay=0.3)  # type: ignore[arg-type]
    built = build_optimizer([{"params": [p]}, {"params": [q], "weight_decay": 0.0}], config, 0.1)
    p.grad, q.grad = torch.zeros(2, 2), torch.zeros(2, 2)
    built.step()
    assert (p < 1).all() and (q == 1).all()


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
    groups = no_decay_on_vectors(net.named_parameters())
    assert [len(g["params"]) for g in groups] == [1, 4]
    assert "weight_decay" not in groups[0] and groups[1]["weight_decay"] == 0.0


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


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"clip_grad": -1.0}, {"base_lr": float("nan")}, {"batch_size": 0}])
def test_impossible_values(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Training(**wrong)  # type: ignore[arg-type]

"""Errors and losses of depth: the authors' code on literal inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_bench.evaluations.frozen.depth_linear import depth_loss, expected_depth, gradient_loss, sig_loss
from ssl_bench.metrics.depth import depth_errors

PREDICTED = torch.tensor([[1.0, 2, 3], [4, 5, 6], [2, 2, 2]])
TRUTH = torch.tensor([[1.1, 1.8, 0], [4.4, 5, 7], [2, 1, 3]])


def test_the_losses_of_the_released_code() -> None:
    """DINOv2's `SigLoss` and `GradientLoss`."""
    assert sig_loss(PREDICTED, TRUTH, 10.0).item() == pytest.approx(0.315497, abs=1e-6)
    assert sig_loss(PREDICTED, TRUTH, 10.0, silent=True).item() == pytest.approx(0.002325, abs=1e-6)
    assert sig_loss(PREDICTED, TRUTH, 5.0).item() == pytest.approx(0.333710, abs=1e-6)
    assert gradient_loss(PREDICTED, TRUTH, 10.0).item() == pytest.approx(0.143337, abs=1e-6)
    assert gradient_loss(PREDICTED[None, None], TRUTH[None, None], 10.0).item() == 0
    batch = torch.stack([PREDICTED * k for k in (1, 1.5, 0.5, 2)])[:, None]
    truths = torch.stack([TRUTH * k for k in (1, 1, 1.2, 1)])[:, None]
    assert gradient_loss(batch, truths, 10.0).item() == pytest.approx(0.290636, abs=1e-6)
    pairs = zip(batch[:, 0], truths[:, 0], strict=True)
    of_maps = [gradient_loss(predicted, truth, 10.0).item() for predicted, truth in pairs]
    assert sum(of_maps) / 4 == pytest.approx(0.143337, abs=1e-6)  # what it was meant to be


@pytest.mark.parametrize("silent", [False, True])
def test_the_gradient_counts_half(silent: bool) -> None:
    """The sum over the batch of four of the released code, its first part by hand."""
    batch = torch.stack([PREDICTED * k for k in (1, 1.5, 0.5, 2)])[:, None]
    truths = torch.stack([TRUTH * k for k in (1, 1, 1.2, 1)])[:, None]
    known = (truths > 0) & (truths <= 10)
    error = np.log(batch[known].double().numpy() + 0.001) - np.log(truths[known].double().numpy() + 0.001)
    first = np.sqrt((0 if silent else error.var(ddof=1)) + 0.15 * error.mean() ** 2)
    found = depth_loss(batch, truths, 10.0, silent).item()
    assert found == pytest.approx(first + 0.5 * 0.290636, abs=2e-6)


def test_the_depth_of_scores() -> None:
    logits = torch.tensor([1.0, -2.0, 0.5, 3.0]).view(1, 4, 1, 1)
    assert expected_depth(logits, 0.001, 10.0).item() == pytest.approx(7.211163, abs=1e-6)


def test_worked_errors() -> None:
    found = depth_errors(PREDICTED, TRUTH, 10.0)
    expected = {"a1": 75, "abs_rel": 22.1140, "sq_rel": 19.2983, "rmse": 0.633443, "rmse_log": 29.5357}
    expected |= {"log10": 8.4076, "silog": 29.529541}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert found["a1"] <= found["a2"] <= found["a3"]
    assert depth_errors(PREDICTED, torch.zeros(3, 3), 10.0) == {}
    assert depth_errors(TRUTH, TRUTH, 10.0)["a1"] == 100


def test_nothing_known_costs_nothing() -> None:
    predicted = PREDICTED.clone().requires_grad_()
    loss = sig_loss(predicted, torch.zeros(3, 3), 10.0) + gradient_loss(predicted, torch.zeros(3, 3), 10.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0 and predicted.grad is not None and predicted.grad.eq(0).all()
    perfect = TRUTH.clone().requires_grad_()
    sig_loss(perfect, TRUTH, 10.0).backward()  # type: ignore[no-untyped-call]
    assert perfect.grad is not None and torch.isfinite(perfect.grad).all()

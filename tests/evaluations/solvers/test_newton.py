"""Logistic regression against scikit-learn: many and few images, strong and weak penalties, separable classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.evaluations.solvers import newton
from ssl_bench.evaluations.solvers.newton import logistic_regression

Cs = (1e-4, 1e-2, 1.0, 1e2, 1e5)


def features(n: int, dim: int, sep: float, seed: int = 0, classes: int = 4) -> tuple[Tensor, Tensor]:
    """(n, dim) float64, strongly correlated and standardised, as features of a network are; every class is there."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres, mix = torch.randn(classes, dim, generator=generator), torch.randn(dim, dim, generator=generator)
    x = (sep * centres[labels] + torch.randn(n, dim, generator=generator)) @ (mix * torch.logspace(0, -2, dim)[:, None])
    x = x.double()
    return (x - x.mean(0)) / x.std(0, correction=0), labels


def objective(x: Tensor, y: Tensor, c: float, weight: Tensor, bias: Tensor) -> float:
    return float(F.cross_entropy(x @ weight + bias, y, reduction="sum") + (weight**2).sum() / (2 * c))


def oracle(x: Tensor, y: Tensor, c: float, intercept: bool = True) -> LogisticRegression:
    # Newton's method: scikit-learn's own L-BFGS stops several digits earlier on features as correlated as these.
    model = LogisticRegression(C=c, tol=1e-7, solver="newton-cholesky", fit_intercept=intercept, max_iter=1000)
    return model.fit(x.numpy(), y.numpy())


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("n", "dim", "sep"), [(600, 12, 0.3), (80, 24, 0.5), (40, 60, 0.5), (100, 8, 20.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scikit_learn(n: int, dim: int, sep: float, intercept: bool, dtype: torch.dtype) -> None:
    """Objective and predictions; with more dimensions than images too, and with classes that a plane separates."""
    x, y = features(n, dim, sep)
    z = features(400, dim, sep)[0] + 0.1
    found = logistic_regression(x.to(dtype)[None], y, 4, Cs, intercept)
    assert found.unfinished == 0
    for i, c in enumerate(Cs):
        model = oracle(x, y, c, intercept)
        weight, bias = torch.from_numpy(model.coef_.T), torch.from_numpy(model.intercept_ * np.ones(4))
        best = objective(x, y, c, weight, bias)
        assert objective(x, y, c, found.weight[i, 0], found.bias[i, 0]) <= best * (1 + 2e-6) + 1e-12
        predicted = (z @ found.weight[i, 0] + found.bias[i, 0]).argmax(1)
        assert (predicted == (z @ weight + bias).argmax(1)).double().mean() >= 0.995


def test_coefficients_at_a_small_tolerance() -> None:
    x, y = features(300, 12, 0.5)
    found = logistic_regression(x[None], y, 4, (0.1, 10.0), tol=1e-12)
    for i, c in enumerate((0.1, 10.0)):
        model = oracle(x, y, c)
        np.testing.assert_allclose(found.weight[i, 0].T.numpy(), model.coef_, atol=1e-5)
        bias = found.bias[i, 0].numpy()
        np.testing.assert_allclose(bias - bias.mean(), model.intercept_ - model.intercept_.mean(), atol=1e-5)


def test_large_sets_are_solved_in_their_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 products, blocks of images and a preconditioner from some of them: the same solution."""
    x, y = features(2000, 12, 0.4)
    exact = logistic_regression(x[None], y, 4, Cs, tol=1e-10)
    monkeypatch.setattr(newton, "DOUBLE", 0)
    monkeypatch.setitem(newton.SCORES_PER_BLOCK, "cpu", 1000)
    found = logistic_regression(x.float()[None], y, 4, Cs)
    assert found.unfinished == 0
    for i, c in enumerate(Cs):
        values = [objective(x, y, c, of.weight[i, 0], of.bias[i, 0]) for of in (exact, found)]
        assert values[1] == pytest.approx(values[0], rel=1e-6)


def test_many_sets_at_once_equal_one_at_a_time() -> None:
    sets = torch.stack([features(60, 12, sep, seed)[0] for seed, sep in enumerate((0.1, 0.5, 30.0))])
    y = torch.arange(60) % 4
    together = logistic_regression(sets, y, 4, Cs, tol=1e-10)
    for i, x in enumerate(sets):
        alone = logistic_regression(x[None], y, 4, Cs, tol=1e-10)
        torch.testing.assert_close(together.weight[:, i], alone.weight[:, 0], atol=1e-3, rtol=1e-3)


def test_the_order_of_penalties_is_kept() -> None:
    x, y = features(100, 8, 0.5)
    up, down = (logistic_regression(x[None], y, 4, order) for order in ((0.01, 1.0), (1.0, 0.01, 1.0)))
    assert torch.equal(up.weight, down.weight[[1, 0]]) and torch.equal(down.weight[0], down.weight[2])


def test_features_that_say_nothing_leave_the_shares_of_the_classes() -> None:
    y = torch.tensor([0, 0, 0, 1])
    found = logistic_regression(torch.zeros(1, 4, 3), y, 2, [1.0])
    assert found.unfinished == 0 and float(found.weight.abs().max()) == 0
    torch.testing.assert_close(found.bias[0, 0].softmax(0), torch.tensor([0.75, 0.25]).double(), atol=1e-3, rtol=0)
    assert logistic_regression(torch.ones(1, 4, 3), torch.zeros(4).long(), 1, [1.0]).unfinished == 0  # one class


def test_too_few_steps_are_counted() -> None:
    x, y = features(80, 24, 0.5)
    assert logistic_regression(x[None], y, 4, (1.0, 1e5), max_steps=1).unfinished == 2

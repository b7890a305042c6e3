"""Factor probes against scikit-learn, known predictions, and their protocol."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from stubs import Stub
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.data import shapes
from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.evaluator import Data
from ssl_bench.evaluations.frozen.factors import TURN, Factors, ridge_regression, skill, target
from ssl_bench.utils.errors import UserError

QUICK = {"ridge": (1e-3, 0.1), "C": (0.1,)}


def problem(noise: float = 0.1, n_test: int = 300) -> tuple[Stub, Data]:
    """Features that hold the size, the kind and the hue, but not the lost factor."""
    sets, features = {}, {}
    for split, count, seed in (("train", 400, 1), ("test", n_test, 2)):
        generator = torch.Generator().manual_seed(seed)
        size, lost, hue = torch.rand(3, count, generator=generator)
        kind = torch.randint(3, (count,), generator=generator)
        angle = 2 * torch.pi * hue
        clean = torch.stack([size, *torch.eye(3)[kind].T, angle.cos(), angle.sin()], 1)
        features[split] = clean + noise * torch.randn(clean.shape, generator=generator)
        factors = {"size": size, "lost": lost, "hue": 360 * hue, "kind": kind}
        pixels = torch.zeros(count, 3, 1, 1, dtype=torch.uint8)
        sets[split] = ImageSet("toy", split, kind, ("a", "b", "c"), "0" * 64, pixels, factors)
    order = torch.arange(400)
    fit, dev = sets["train"].subset(order[80:], "train"), sets["train"].subset(order[:80], "dev")
    return Stub(features), Data(sets["train"], fit, dev, sets["test"])


def test_ridge_equals_scikit_learn() -> None:
    encoder, data = problem()
    x, z = encoder.of["train"], encoder.of["test"]
    targets = {name: target(name, data.train.factors[name]) for name in ("size", "hue")}
    found = ridge_regression(x, targets, z, (1e-3, 1.0))
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    for penalty, predictions in zip((1e-3, 1.0), found, strict=True):
        for name, t in targets.items():
            oracle = Ridge(alpha=penalty * 400).fit(((x - mean) / std).numpy(), t.numpy())
            expected = oracle.predict(((z - mean) / std).numpy()).reshape(predictions[name].shape)
            np.testing.assert_allclose(predictions[name].numpy(), expected, atol=1e-5)


def test_classifications_and_their_strength_equal_scikit_learn() -> None:
    encoder, data = problem(noise=0.4)
    grid = (0.01, 1.0, 100.0, 1e5)
    made = Factors(ridge=(0.1,), C=grid)
    train, dev, test = encoder.of["train"], data.dev, encoder.of["test"]
    x, y = train[data.fit.origin[1]], data.fit.factors["kind"]  # type: ignore[index]
    mean, std = x.double().mean(0), x.double().std(0, correction=0)

    def standard(features: Tensor) -> np.ndarray:
        return ((features.double() - mean) / std).numpy()

    heads, unfinished = made.head.fit(x, y, 3, grid)
    on_dev = []
    for i, c in enumerate(grid):
        model = LogisticRegression(C=c, tol=1e-7, solver="newton-cholesky", max_iter=1000).fit(standard(x), y.numpy())

        def objective(weight: Tensor, bias: Tensor, c: float = c) -> float:
            loss = F.cross_entropy(torch.from_numpy(standard(x)) @ weight + bias, y, reduction="sum")
            return float(loss + (weight**2).sum() / (2 * c))

        best = objective(torch.from_numpy(model.coef_.T), torch.from_numpy(model.intercept_))
        # Heads of a tolerance of 1e-3 are 2e-6 above it.
        assert objective(heads.weight[i].double(), heads.bias[i].double()) <= best * (1 + 1e-7)
        assert (heads.scores(test)[:, i].argmax(1).numpy() == model.predict(standard(test))).mean() > 0.99
        right = torch.from_numpy(model.predict(standard(train[dev.origin[1]]))) == dev.factors["kind"]  # type: ignore[index]
        wrong = dev.factors["kind"] != torch.bincount(y).argmax()
        on_dev.append((skill((~right).double(), wrong.double()), c))
    assert unfinished == 0
    chosen = made.run(encoder, data).chosen
    assert (chosen["dev_skill"]["kind"], chosen["strength"]["kind"]) == pytest.approx(max(on_dev))  # type: ignore[index]


def test_what_is_there_is_found_and_what_is_not_is_not() -> None:
    encoder, data = problem()
    result = Factors(**QUICK).run(encoder, data)
    assert result.pooling == "mean"
    value = {name: metric.value for name, metric in result.metrics.items()}
    assert set(value) == {"skill", "size/r2", "lost/r2", "hue/r2", "kind/top1"}
    assert value["size/r2"] > 80
    assert value["hue/r2"] > 95
    assert value["kind/top1"] == 100
    assert abs(value["lost/r2"]) < 5
    assert value["skill"] == pytest.approx(np.mean([value["size/r2"], value["lost/r2"], value["hue/r2"], 100]))
    assert encoder.asked[-1] == "test"
    assert encoder.asked.count("test") == 1
    json.dumps(result.chosen)
    for metric in result.metrics.values():
        assert metric.n == 300
        assert metric.low <= metric.value <= metric.high
    assert Factors(**QUICK).run(encoder, data).metrics == result.metrics


def test_noise_free_features_explain_everything_and_scale_does_not_matter() -> None:
    encoder, data = problem(noise=0.0)
    exact = Factors(ridge=(1e-5,), C=(1.0,)).run(encoder, data).metrics
    assert exact["size/r2"].value > 99.9
    encoder.of = {split: 1000 * x + 7 for split, x in encoder.of.items()}
    scaled = Factors(ridge=(1e-5,), C=(1.0,)).run(encoder, data).metrics
    assert scaled["skill"].value == pytest.approx(exact["skill"].value, abs=0.1)


def test_duplicated_test_set_keeps_the_numbers() -> None:
    encoder, data = problem()
    before = Factors(**QUICK).run(encoder, data)
    encoder.of["test"] = encoder.of["test"].repeat(2, 1)
    factors = {name: values.repeat(2) for name, values in data.test.factors.items()}
    pixels = torch.zeros(600, 3, 1, 1, dtype=torch.uint8)
    twice = ImageSet("toy", "test", data.test.labels.repeat(2), ("a", "b", "c"), "0" * 64, pixels, factors)
    after = Factors(**QUICK).run(encoder, Data(data.train, data.fit, data.dev, twice))
    assert after.metrics["skill"].value == pytest.approx(before.metrics["skill"].value, abs=1e-3)


def test_skill_of_the_constant_is_zero() -> None:
    error = torch.rand(10, generator=torch.Generator().manual_seed(0))
    assert skill(error, error) == 0
    assert skill(torch.zeros(10), error) == 100
    assert skill(torch.zeros(10), torch.zeros(10)) == 0


def test_every_factor_of_shapes_is_probed() -> None:
    drawn = {split: shapes.draw(60, seed=seed) for split, seed in (("train", 0), ("test", 1))}
    sets = {
        split: ImageSet("shapes", split, d.labels, tuple(shapes.CLASSES), "0" * 64, d.images, d.factors)
        for split, d in drawn.items()
    }
    order = torch.arange(60)
    data = Data(
        sets["train"], sets["train"].subset(order[20:], "train"), sets["train"].subset(order[:20], "dev"), sets["test"]
    )
    small = {split: d.images.float().mean((2, 3)) for split, d in drawn.items()}
    result = Factors(**QUICK).run(Stub(small), data)
    assert {name.partition("/")[0] for name in result.metrics} == {"skill", *drawn["train"].factors}
    assert set(TURN) <= set(drawn["train"].factors)
    categorical = {name for name in result.metrics if name.endswith("/top1")}
    assert categorical == {"shape/top1", "background/top1", "clutter/top1"}


def test_a_data_set_without_factors_is_one_line() -> None:
    encoder, data = problem()
    bare = ImageSet("cifar10", "train", data.train.labels, data.train.classes, "0" * 64, data.train.images)
    order = torch.arange(400)
    with pytest.raises(UserError, match=r"factors: cifar10 comes without factors; use a drawn data set \(shapes\)"):
        Factors().run(encoder, Data(bare, bare.subset(order[80:], "train"), bare.subset(order[:80], "dev"), data.test))


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UserError, match="ridge must be positive"):
        Factors(ridge=(0.0,))

"""The shared parts of evaluators: intervals, checks on features, settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations import EVALUATIONS, KNN, Linear
from ssl_bench.evaluations.evaluator import Data, check_features, match_poolings
from ssl_bench.metrics.metric import accuracy_metric
from ssl_bench.utils.errors import RunError, UserError


def images(split: str, n: int, classes: tuple[str, ...] = ("a", "b")) -> ImageSet:
    labels = torch.arange(n) % len(classes)
    factors = {"size": torch.rand(n, generator=torch.Generator().manual_seed(n))}
    return ImageSet("toy", split, labels, classes, "0" * 64, torch.zeros(n, 3, 2, 2, dtype=torch.uint8), factors)


class Stub:
    """Offers the given features for each split."""

    def __init__(
        self, features: Callable[[ImageSet, str], Tensor], poolings: tuple[str, ...] = ("cls", "mean")
    ) -> None:
        self.of, self.poolings = features, poolings

    def features(self, split: ImageSet, poolings: Sequence[str]) -> dict[str, Tensor]:
        return {name: self.of(split, name) for name in poolings}


def toy_data() -> Data:
    return Data(images("train", 40), images("train", 30), images("dev", 10), images("test", 20))


def test_wilson_interval_against_published_values() -> None:
    """Newcombe (1998), Table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    for right, n, low, high in [
        (81, 263, 25.53, 36.62),
        (15, 148, 6.24, 16.05),
        (0, 20, 0.0, 16.11),
        (1, 29, 0.61, 17.18),
    ]:
        metric = accuracy_metric(np.arange(n) < right)
        assert metric.n == n
        assert metric.value == pytest.approx(100 * right / n)
        assert (round(metric.low, 2), round(metric.high, 2)) == (low, high)


@pytest.mark.parametrize("right", [0, 1, 7])
def test_interval_holds_the_value_at_the_ends(right: int) -> None:
    metric = accuracy_metric(np.arange(7) < right)
    assert 0 <= metric.low <= metric.value <= metric.high <= 100


def test_poolings_keep_the_wanted_order_and_name_the_choices() -> None:
    assert match_poolings(("mean", "last4", "cls"), ("cls", "mean")) == ("mean", "cls")
    assert match_poolings(("cls",), ("pixels",)) == ("pixels",)
    with pytest.raises(UserError, match=r"last4.*cls, mean"):
        match_poolings(("last4",), ("cls", "mean"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_features_are_refused(bad: float) -> None:
    features = torch.randn(10, 4)
    features[3, 2] = bad
    with pytest.raises(RunError, match="'cls' features of the dev split contain NaN or infinity"):
        check_features(features, "cls", "dev", 10)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_collapsed_features_are_refused_at_any_scale(scale: float) -> None:
    collapsed = torch.randn(1, 4).repeat(10, 1) * scale
    for features in (collapsed, collapsed * (1 + 1e-7 * torch.rand(10, 4)), torch.zeros(10, 4)):
        with pytest.raises(RunError, match="'mean' features of the test split are the same"):
            check_features(features, "mean", "test", 10)
    check_features(torch.randn(10, 4) * scale, "mean", "test", 10)
    check_features(collapsed[:1], "mean", "test", 1)  # one image cannot vary


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(RunError, match=r"\(9, 4\), not \(10, D\)"):
        check_features(torch.randn(9, 4), "cls", "test", 10)


@pytest.mark.parametrize("name", EVALUATIONS)
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_no_result_from_broken_features(name: str, split: str) -> None:
    if name == "diagnostics" and split != "test":
        pytest.skip("sees nothing but the test images")
    if name in ("finetune", "probe", "robustness", "copy-detection"):
        pytest.skip("needs a network, not features alone: its own tests cover this")
    if EVALUATIONS[name].needs not in ("labels", "factors", ""):
        pytest.skip("reads maps: evaluations/dense.py refuses broken ones for all")

    def features(asked: ImageSet, pooling: str) -> Tensor:
        found = torch.randn(len(asked), 4, generator=torch.Generator().manual_seed(len(asked)))
        return found * float("nan") if asked.split == split else found

    with pytest.raises(RunError, match=f"of the {split} split"):
        EVALUATIONS[name]().run(Stub(features), toy_data())


def test_data_refuses_empty_and_foreign_splits() -> None:
    train, fit, dev, test = images("train", 40), images("train", 30), images("dev", 10), images("test", 20)
    with pytest.raises(UserError, match="dev split of 'toy' has no images"):
        Data(fit, fit, images("dev", 0), test)
    with pytest.raises(UserError, match="test split of 'toy' has other classes"):
        Data(train, fit, dev, images("test", 20, ("a", "c")))
    with pytest.raises(UserError, match=r"40 \+ 10 images, train 40"):
        Data(train, train, dev, test)


def test_settings_are_the_constructor_keywords_and_survive_json() -> None:
    settings = KNN(k=(1, 3), headline_k=3).settings()
    assert settings["k"] == [1, 3]
    assert settings["headline_k"] == 3
    assert set(settings) == {
        "k",
        "temperature",
        "headline_k",
        "headline_temperature",
        "poolings",
        "half",
    }
    for evaluator in (KNN(), Linear()):
        again = json.loads(json.dumps(evaluator.settings()))
        assert again == evaluator.settings()
        assert type(evaluator)(**again).settings() == again


def test_versions_are_stated() -> None:
    for name, evaluator in EVALUATIONS.items():
        assert isinstance(evaluator.version, int), name
        assert evaluator.metric_help, name

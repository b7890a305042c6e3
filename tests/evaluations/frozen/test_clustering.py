"""Clustering against worked numbers and scikit-learn; k-means; the protocol."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle
from torch import Tensor
from torchmetrics.functional.clustering import (
    adjusted_rand_score,
    fowlkes_mallows_index,
    normalized_mutual_info_score,
)

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.evaluator import Data
from ssl_bench.evaluations.frozen.clustering import Clustering, agreement, kmeans, matched
from ssl_bench.evaluations.solvers.neighbours import normalize
from ssl_bench.utils.errors import RunError, UserError

# Labels, clusters, then NMI, ARI, FMI, ACC of the authors' functions.
WORKED = {
    "A": ([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 0, 0, 0, 0, 2, 2, 2, 2, 2],
          0.6457828916, 0.5119453925, 0.6488856845, 0.8333333333),
    "B": ([0, 0, 1, 1, 2, 2], [2, 2, 0, 0, 1, 1], 1, 1, 1, 1),
    "C": ([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3], [0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 2, 3],
          0.4575187496, 0.0833333333, 0.25, 0.5833333333),
    "D": ([0, 0, 0, 0, 1, 1, 1, 2, 2, 3], [3, 3, 3, 3, 0, 0, 2, 1, 1, 2],
          0.8738210225, 0.8, 0.8432740427, 0.9),
    "gap": ([0, 0, 1, 1, 2, 2], [0, 0, 2, 2, 2, 0], 0.5158037430, 0.2424242424, 0.4714045208, 0.6666666667),
    # The official accuracy is 0 here, for no cluster has number 0: a perfect clustering must not be.
    "shifted": ([0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 3, 3], 1, 1, 1, 1),
}  # fmt: skip


def table(labels: Tensor, clusters: Tensor) -> Tensor:
    k = int(clusters.max()) + 1
    return torch.bincount(labels * k + clusters, minlength=(int(labels.max()) + 1) * k).view(-1, k).double()


@pytest.mark.parametrize("case", WORKED)
def test_parity_with_worked_numbers(case: str) -> None:
    y, c, nmi, ari, fmi, acc = WORKED[case]
    labels, clusters = torch.tensor(y), torch.tensor(c)
    found = agreement(table(labels, clusters))
    assert [found["nmi"], found["ari"], found["fmi"]] == pytest.approx([nmi, ari, fmi], abs=1e-9)
    k = int(clusters.max()) + 1
    assert float(matched(labels, clusters, int(labels.max()) + 1, k).double().mean()) == pytest.approx(acc, abs=1e-9)


@pytest.mark.parametrize(("classes", "k"), [(3, 3), (4, 7), (6, 2), (1, 3), (3, 1)])
def test_equals_scikit_learn_and_all_matchings(classes: int, k: int) -> None:
    random = np.random.default_rng(classes * 10 + k)
    y, c = random.integers(classes, size=60), random.integers(k, size=60)
    labels, clusters = torch.from_numpy(y), torch.from_numpy(c)
    found = agreement(table(labels, clusters))
    assert found["nmi"] == pytest.approx(oracle.normalized_mutual_info_score(y, c), abs=1e-9)
    assert found["ari"] == pytest.approx(oracle.adjusted_rand_score(y, c), abs=1e-9)
    assert found["fmi"] == pytest.approx(oracle.fowlkes_mallows_score(y, c), abs=1e-9)
    if classes > 1:
        theirs = (normalized_mutual_info_score, adjusted_rand_score, fowlkes_mallows_index)
        assert list(found.values()) == pytest.approx([float(score(clusters, labels)) for score in theirs], abs=1e-6)
    slots = list(range(classes)) + [-1] * k  # a cluster may stand for no class
    best = max(np.mean(np.array(meaning)[c] == y) for meaning in set(itertools.permutations(slots, k)))
    assert float(matched(labels, clusters, classes, k).double().mean()) == pytest.approx(best)


def problem(n: int = 300, sep: float = 1.5) -> tuple[Stub, Data]:
    sets, features = {}, {}
    centres = torch.randn(4, 8, generator=torch.Generator().manual_seed(7))
    for split, count, seed in (("train", n, 1), ("test", 200, 2)):
        y = torch.arange(count) % 4
        x = sep * centres[y] + torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
        features[split] = {"cls": torch.randn(count, 8, generator=torch.Generator().manual_seed(seed + 5)), "mean": x}
        pixels = torch.zeros(count, 3, 1, 1, dtype=torch.uint8)
        sets[split] = ImageSet("toy", split, y, tuple("abcd"), "0" * 64, pixels)
    order, n_dev = torch.arange(n), n // 5
    fit, dev = sets["train"].subset(order[n_dev:], "train"), sets["train"].subset(order[:n_dev], "dev")
    return Stub(features), Data(sets["train"], fit, dev, sets["test"])


class Stub:
    """Pooling "mean" carries the class, "cls" nothing."""

    poolings = ("cls", "mean")

    def __init__(self, features: dict[str, dict[str, Tensor]]) -> None:
        self.of, self.asked = features, list[str]()

    def features(self, images: ImageSet, poolings: object) -> dict[str, Tensor]:
        self.asked.append(images.split)
        whole, rows = (images, slice(None)) if images.origin is None else images.origin
        return {name: x[rows] for name, x in self.of[whole.split].items()}


@pytest.mark.parametrize("fit_on", ["train", "test"])
def test_separable_classes_are_all_right(fit_on: str) -> None:
    result = Clustering(fit_on=fit_on).run(*problem(sep=30))
    assert all(metric.value == pytest.approx(100) for metric in result.metrics.values())
    assert result.correct.all()
    assert result.pooling == "mean"
    json.dumps(result.chosen)


def test_numbers_equal_scikit_learn_on_the_same_clusters() -> None:
    encoder, data = problem()
    result = Clustering(seed=3).run(encoder, data)
    x, z = (normalize(encoder.of[split]["mean"]) for split in ("train", "test"))
    centres = kmeans(x, 4, restarts=10, iterations=25, seed=3)
    clusters = (z @ centres.T).argmax(1)
    y = data.test.labels.numpy()
    assert result.metrics["nmi"].value == pytest.approx(100 * oracle.normalized_mutual_info_score(y, clusters))
    assert result.metrics["ari"].value == pytest.approx(100 * oracle.adjusted_rand_score(y, clusters))
    assert result.metrics["top1"].value == pytest.approx(100 * result.correct.mean())
    for metric in result.metrics.values():
        assert metric.low < metric.value < metric.high
    assert 50 < result.metrics["top1"].value < 99
    assert encoder.asked[-1] == "test"
    assert encoder.asked.count("test") == 1


def test_dev_and_test_have_their_own_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def count(rows: Tensor, k: int, **settings: int) -> Tensor:
        asked.append(settings["restarts"])
        return kmeans(rows, k, **settings)

    monkeypatch.setattr("ssl_bench.evaluations.frozen.clustering.kmeans", count)
    Clustering(restarts=2, dev_restarts=1).run(*problem())
    assert asked == [1, 1, 2]  # two poolings, then the one chosen


def test_random_features_are_chance() -> None:
    metrics = Clustering().run(*problem(sep=0)).metrics
    assert 25 <= metrics["top1"].value < 36  # the best matching is above 1 / 4
    assert metrics["ari"].low < 1.5


def test_same_seed_same_row_and_invariances() -> None:
    encoder, data = problem()
    first = Clustering().run(encoder, data)
    again = Clustering().run(encoder, data)
    assert first.metrics == again.metrics
    np.testing.assert_array_equal(first.correct, again.correct)
    encoder.of = {split: {name: x * 8 for name, x in found.items()} for split, found in encoder.of.items()}
    np.testing.assert_array_equal(Clustering().run(encoder, data).correct, first.correct)
    new = torch.tensor([3, 0, 1, 2])
    for split in (data.train, data.fit, data.dev, data.test):
        split.labels.copy_(new[split.labels])
    permuted = Clustering().run(encoder, data)
    np.testing.assert_array_equal(permuted.correct, first.correct)
    assert permuted.metrics["nmi"].value == pytest.approx(first.metrics["nmi"].value)


def test_duplicated_test_set_keeps_the_numbers() -> None:
    encoder, data = problem()
    before = Clustering().run(encoder, data)
    encoder.of["test"] = {name: x.repeat(2, 1) for name, x in encoder.of["test"].items()}
    pixels = torch.zeros(400, 3, 1, 1, dtype=torch.uint8)
    twice = ImageSet("toy", "test", data.test.labels.repeat(2), tuple("abcd"), "0" * 64, pixels)
    after = Clustering().run(encoder, Data(data.train, data.fit, data.dev, twice))
    assert after.metrics["top1"].value == before.metrics["top1"].value
    assert after.metrics["nmi"].value == pytest.approx(before.metrics["nmi"].value)


def test_more_and_fewer_clusters_than_classes() -> None:
    assert Clustering(clusters=12).run(*problem(sep=30)).metrics["top1"].value < 75
    two = Clustering(clusters=2).run(*problem(sep=30))
    assert two.metrics["top1"].value == pytest.approx(50)
    assert two.chosen["clusters"] == 2
    with pytest.raises(RunError, match="60 images are fewer than 100 clusters"):
        Clustering(clusters=100, fit_on="test").run(*problem())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fit_on": "trian"}, "did you mean 'train'"),
        ({"restarts": 0}, "at least 1"),
        ({"dev_restarts": 0}, "at least 1"),
        ({"clusters": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Clustering(**settings)  # type: ignore[arg-type]

"""Few-shot heads against scikit-learn and direct solves; episodes; the protocol."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as RidgeOracle
from sklearn.neighbors import NearestCentroid
from stubs import Stub
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.evaluator import Data, Result
from ssl_bench.evaluations.frozen.fewshot import HEADS, FewShot, linear_heads, predictions
from ssl_bench.utils.errors import RunError, UserError

QUICK = {"shots": (1, 5), "episodes": 12, "dev_episodes": 4, "ridge": (0.1, 10.0), "C": (0.1, 1.0)}
GRID = (0.01, 1.0, 100.0, 1e5)  # of C: from a penalty that decides everything to none


def blobs(n: int, seed: int, sep: float, classes: int = 4, dim: int = 10) -> tuple[Tensor, Tensor]:
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return sep * centres[labels] + torch.randn(n, dim, generator=generator), labels


def problem(n: int = 200, n_test: int = 160, sep: float = 0.7, classes: int = 4) -> tuple[Stub, Data]:
    sets, features = {}, {}
    for split, count, seed in (("train", n, 1), ("test", n_test, 2)):
        features[split], y = blobs(count, seed, sep, classes)
        pixels = torch.zeros(count, 3, 1, 1, dtype=torch.uint8)
        sets[split] = ImageSet("toy", split, y, tuple(f"c{i}" for i in range(classes)), "0" * 64, pixels)
    order, n_dev = torch.arange(n), n // 5
    fit, dev = sets["train"].subset(order[n_dev:], "train"), sets["train"].subset(order[:n_dev], "dev")
    return Stub(features), Data(sets["train"], fit, dev, sets["test"])


def top1(result: Result) -> float:
    return result.metrics["top1"].value


def oracle(x: np.ndarray, y: np.ndarray, c: float) -> LogisticRegression:
    """Closer to the minimum than the head: what differs is the head's."""
    return LogisticRegression(C=c, tol=1e-7, solver="newton-cholesky", max_iter=1000).fit(x, y)


def objective(scores: np.ndarray, labels: np.ndarray, weight: np.ndarray, c: float) -> float:
    log = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return float(-log[np.arange(len(labels)), labels].sum() + (weight**2).sum() / (2 * c))


@pytest.mark.parametrize("shots", [1, 2, 8])  # fewer and more images than dimensions
@pytest.mark.parametrize("head", HEADS)
def test_heads_equal_their_oracles(head: str, shots: int) -> None:
    x, _ = blobs(4 * shots * 3, 3, 0.7)
    support = x.view(3, shots, 4, 10).transpose(1, 2)  # three episodes, four classes
    labels = torch.arange(4).repeat_interleave(shots)
    queries = blobs(500, 4, 0.7)[0]
    grid = {"centroid": (0.5,), "ridge": (9.0, 0.5), "logistic": GRID}[head]
    weights, biases = linear_heads(head, support, grid)
    for (i, strength), e in itertools.product(enumerate(grid), range(3)):
        weight, bias = weights[i], biases[i]
        own, ask = support[e].flatten(0, 1).double().numpy(), queries.double().numpy()
        if head == "centroid":
            with np.errstate(invalid="ignore"):  # scikit-learn also wants a spread, which one shot does not have
                expected = NearestCentroid().fit(own, labels.numpy()).predict(ask)
        else:
            centre = own.mean(0)
            scale = np.sqrt(((own - centre) ** 2).mean())
            own, ask = (own - centre) / scale, (ask - centre) / scale
            if head == "ridge":
                penalty = strength * np.trace(own.T @ own) / 10  # of the mean eigenvalue
                expected = RidgeOracle(alpha=penalty).fit(own, np.eye(4)[labels]).predict(ask).argmax(1)
            else:
                model = oracle(own, labels.numpy(), strength)
                expected = model.predict(ask)
                best = objective(model.decision_function(own), labels.numpy(), model.coef_, strength)
                raw, of = support[e].flatten(0, 1).double().numpy(), weight[e].double().numpy()
                reached = objective(raw @ of + bias[e].double().numpy(), labels.numpy(), of * scale, strength)
                assert reached <= best * (1 + 1e-8)  # a head of a tolerance of 1e-3 is up to 1e-5 above it
        said = (queries @ weight[e] + bias[e]).argmax(1).numpy()
        assert (said == expected).mean() > 0.99


def test_the_strength_chosen_on_dev_is_that_of_scikit_learn() -> None:
    encoder, data = problem(sep=0.4)
    settings = {"shots": (1, 5), "episodes": 2, "dev_episodes": 4, "C": GRID, "heads": ("logistic",)}
    chosen = FewShot(**settings, headline_head="logistic").run(encoder, data).chosen  # type: ignore[arg-type]
    fit, dev = (F.normalize(encoder.of["train"][each.origin[1]], dim=1).numpy() for each in (data.fit, data.dev))  # type: ignore[index]
    labels, found = data.fit.labels.numpy(), {}
    for shots in (1, 5):
        accuracy = np.zeros(len(GRID))
        for episode in range(4):
            random = np.random.default_rng([0, episode])
            order = np.sort(random.permutation(4))
            rows = np.concatenate([random.choice(np.flatnonzero(labels == c), 5, False)[:shots] for c in order])
            own, ask, y = fit[rows].astype(float), dev.astype(float), labels[rows]
            centre = own.mean(0)
            scale = np.sqrt(((own - centre) ** 2).mean())
            own, ask = (own - centre) / scale, (ask - centre) / scale
            right = [(oracle(own, y, c).predict(ask) == data.dev.labels.numpy()).mean() for c in GRID]
            accuracy += 100 * np.array(right) / 4
        found[f"k={shots},head=logistic"] = GRID[int(accuracy.argmax())]
        assert chosen["dev_top1"][f"k={shots},head=logistic"] == pytest.approx(accuracy.max(), abs=1e-4)  # type: ignore[index]
    assert chosen["strength"] == found


def test_answers_count_only_classes_of_the_episode() -> None:
    weight = torch.eye(3).repeat(2, 1, 1)[:, :, :2]
    classes, labels = torch.tensor([[0, 1], [1, 2]]), torch.tensor([0, 1, 2])
    correct, valid = predictions(weight, torch.zeros(2, 2), classes, torch.eye(3), labels)
    assert valid.tolist() == [[1, 1, 0], [0, 1, 1]]
    assert correct.tolist() == [[1, 1, 0], [0, 0, 0]]


def test_all_numbers_are_reported_and_more_shots_help() -> None:
    encoder, data = problem()
    result = FewShot(**QUICK).run(encoder, data)
    assert result.pooling == "mean"
    assert len(result.metrics) == 1 + 2 * 3
    assert result.metrics["top1"] == result.metrics["top1@k=5,head=ridge"]
    for head in HEADS:
        assert result.metrics[f"top1@k=1,head={head}"].value < result.metrics[f"top1@k=5,head={head}"].value
    for metric in result.metrics.values():
        assert metric.n == 160
        assert metric.low < metric.value < metric.high
    assert encoder.asked[-1] == "test"
    assert encoder.asked.count("test") == 1
    json.dumps(result.chosen)


def test_the_headline_equals_a_loop_over_episodes() -> None:
    encoder, data = problem()
    result = FewShot(**QUICK, heads=("centroid",), headline_head="centroid").run(encoder, data)
    x, z = (f / f.norm(dim=1, keepdim=True) for f in (encoder.of["train"], encoder.of["test"]))
    accuracies = []
    for episode in range(12):
        random = np.random.default_rng([0, episode])
        order = np.sort(random.permutation(4))
        rows = [random.choice(np.flatnonzero(data.train.labels.numpy() == label), 5, replace=False) for label in order]
        centres = torch.stack([x[torch.from_numpy(r)].mean(0) for r in rows])
        accuracies.append(float((torch.cdist(z, centres).argmin(1) == data.test.labels).double().mean()))
    assert top1(result) == pytest.approx(100 * np.mean(accuracies), abs=1e-4)
    std = result.chosen["population_std_over_episodes"]["top1@k=5,head=centroid"]  # type: ignore[index]
    assert std == pytest.approx(100 * np.std(accuracies), abs=1e-4)


def test_separable_classes_are_all_right_and_random_features_are_chance() -> None:
    result = FewShot(**QUICK).run(*problem(sep=30))
    assert all(metric.value == 100.0 for metric in result.metrics.values())
    result = FewShot(**QUICK).run(*problem(n_test=1000, sep=0.0))
    assert all(abs(m.value - 25) < 4 * 100 * math.sqrt(0.25 * 0.75 / 1000) for m in result.metrics.values())


def test_fewer_ways_are_easier() -> None:
    encoder, data = problem(classes=8, n=400)
    all_ways, two = FewShot(**QUICK).run(encoder, data), FewShot(**QUICK, ways=2).run(encoder, data)
    assert top1(two) > top1(all_ways) + 10
    assert two.metrics["top1"].n <= 160
    with pytest.raises(UserError, match="9 ways, but toy has 8 classes"):
        FewShot(**QUICK, ways=9).run(encoder, data)


def test_small_classes_skip_large_k_and_say_so() -> None:
    encoder, data = problem(n=40, n_test=20)  # eight images a class to fit on
    result = FewShot(**(QUICK | {"shots": (1, 5, 25)}), headline_shots=25).run(encoder, data)
    assert result.chosen["skipped_shots"] == [25]
    assert result.chosen["headline_shots"] == 5
    assert result.metrics["top1"] == result.metrics["top1@k=5,head=ridge"]
    with pytest.raises(RunError, match="class 'c0' has 8 images to fit on, fewer than 25 shots"):
        FewShot(shots=(25,), headline_shots=25).run(encoder, data)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_rescaled_features_change_nothing(scale: float) -> None:
    encoder, data = problem()
    before = FewShot(**QUICK).run(encoder, data)
    encoder.of = {split: x * scale for split, x in encoder.of.items()}
    assert top1(FewShot(**QUICK).run(encoder, data)) == pytest.approx(top1(before), abs=0.1)


def test_memory_bound_does_not_change_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, data = problem(n=80, n_test=40)
    few = QUICK | {"episodes": 4, "dev_episodes": 2}
    torch.manual_seed(1)
    before = FewShot(**few).run(encoder, data)
    monkeypatch.setattr("ssl_bench.evaluations.frozen.fewshot.SUPPORT_NUMBERS", 1)  # one episode at a time
    monkeypatch.setattr("ssl_bench.evaluations.frozen.fewshot.SCORES_PER_BLOCK", 1)
    torch.manual_seed(2)
    after = FewShot(**few).run(encoder, data)
    for name, metric in before.metrics.items():
        assert after.metrics[name].value == pytest.approx(metric.value, abs=0.1)
    assert FewShot(**few).run(encoder, data).metrics == after.metrics
    assert FewShot(**few, seed=1).run(encoder, data).metrics != after.metrics


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": ()}, "shots must be positive"),
        ({"shots": (0, 5)}, "shots must be positive"),
        ({"heads": ("ridge", "centriod")}, "did you mean 'centroid'"),
        ({"headline_shots": 3}, "is not among heads"),
        ({"heads": ("centroid",)}, "is not among heads"),
        ({"episodes": 1}, "episodes must be at least 2"),
        ({"ways": 1}, "ways must be at least 2"),
        ({"ridge": (-1.0,)}, "ridge must be positive"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FewShot(**settings)  # type: ignore[arg-type]

"""Logistic regression against scikit-learn, known predictions, and its own protocol; low-shot on top of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from stubs import FixedFeatures
from torch import Tensor

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.evaluator import Data, Evaluator, Result
from ssl_bench.evaluations.frozen.logistic import Logistic, class_metric
from ssl_bench.evaluations.frozen.lowshot import LowShot
from ssl_bench.evaluations.subsets import balanced_subset, listed
from ssl_bench.utils.errors import RunError, UserError

QUICK = {"C": (0.01, 1.0)}


def clusters(n: int, seed: int, sep: float = 0.7, classes: int = 5, dim: int = 12) -> tuple[Tensor, Tensor]:
    """Overlapping clusters seen through an ill-conditioned map with an offset, as features of a network are."""
    fixed = torch.Generator().manual_seed(3)
    centres, mix = torch.randn(classes, dim, generator=fixed), torch.randn(dim, dim, generator=fixed)
    mix = mix * torch.logspace(0, -1, dim)[:, None]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    return (sep * centres[labels] + torch.randn(n, dim, generator=generator)) @ mix + 3, labels


def problem(
    n_train: int = 500, n_test: int = 600, sep: float = 0.7, random_labels: bool = False
) -> tuple[FixedFeatures, Data]:
    """Pooling "mean" carries the class, "cls" nothing."""
    sets, features = {}, {}
    for split, n, seed in (("train", n_train, 1), ("test", n_test, 2)):
        x, y = clusters(n, seed, sep)
        generator = torch.Generator().manual_seed(seed + 10)
        features[split] = {"cls": torch.randn(n, 6, generator=generator), "mean": x}
        if random_labels:
            y = torch.randint(5, (n,), generator=generator)
        pixels = torch.zeros(n, 3, 1, 1, dtype=torch.uint8)
        sets[split] = ImageSet("toy", split, y, tuple("abcde"), "0" * 64, pixels)
    order = torch.arange(n_train)
    n_dev = n_train // 5
    fit, dev = sets["train"].subset(order[n_dev:], "train"), sets["train"].subset(order[:n_dev], "dev")
    return FixedFeatures(features), Data(sets["train"], fit, dev, sets["test"])


def top1(result: Result) -> float:
    return result.metrics["top1"].value


def test_default_tolerance_is_within_a_hundredth_of_the_optimum() -> None:
    (x, y), (z, _) = clusters(2000, 1), clusters(1000, 2)
    (quick, left), (exact, _) = (
        Logistic().fit(x, y, 5, [0.01, 1.0]),
        Logistic(tol=1e-10).fit(x.double(), y, 5, [0.01, 1.0]),
    )
    assert (quick.scores(z) - exact.scores(z)).abs().max() < 0.01
    assert left == 0


@pytest.mark.parametrize("evaluator", [Logistic, LowShot])
def test_what_is_compared_on_dev_is_what_scikit_learn_finds(evaluator: type[Evaluator]) -> None:
    """Few images a dimension and weak penalties, where early stopping chooses another C (and did)."""
    Cs, dim = (1e-2, 1.0, 100.0, 1e5), 24
    y, y_test = (torch.randint(5, (n,), generator=torch.Generator().manual_seed(n)) for n in (100, 400))
    generator = torch.Generator().manual_seed(1)
    centres, mix = torch.randn(5, dim, generator=generator), torch.randn(dim, dim, generator=generator)
    mix *= torch.logspace(0, -2, dim)[:, None]
    x, x_test = ((centres[part] + 2 * torch.randn(len(part), dim, generator=generator)) @ mix for part in (y, y_test))
    pixels = torch.zeros(400, 3, 1, 1, dtype=torch.uint8)
    train, test = (
        ImageSet("toy", split, part, tuple("abcde"), "0" * 64, pixels[: len(part)])
        for split, part in (("train", y), ("test", y_test))
    )
    data = Data(train, train.subset(torch.arange(40, 100), "train"), train.subset(torch.arange(40), "dev"), test)
    encoder = FixedFeatures({"train": {"mean": x}, "test": {"mean": x_test}})
    fit = x[40:].double()
    scaled = (x.double() - fit.mean(0)) / fit.std(0, correction=0)
    on_dev = []
    for c in Cs:
        oracle = LogisticRegression(C=c, tol=1e-7, solver="newton-cholesky", max_iter=1000)
        oracle.fit(scaled[40:].numpy(), y[40:].numpy())
        on_dev.append(100 * oracle.score(scaled[:40].numpy(), y[:40].numpy()))
    settings = {"C": Cs} | ({"fractions": (1.0,), "draws": 1} if evaluator is LowShot else {})
    result = evaluator(**settings).run(encoder, data)
    chosen, dev_top1 = result.chosen["C"], result.chosen["dev_top1"]
    if evaluator is LowShot:
        chosen, dev_top1 = chosen["100%"], dev_top1["100%"]  # type: ignore[index]
    assert dev_top1 == pytest.approx(max(on_dev))
    assert on_dev[Cs.index(chosen)] == pytest.approx(max(on_dev))  # type: ignore[arg-type]
    assert len(set(on_dev)) > 2 and result.chosen["unfinished"] == 0


def test_run_equals_scikit_learn_with_the_same_choice() -> None:
    encoder, data = problem()
    result = Logistic().run(encoder, data)
    assert result.pooling == "mean"
    x, z = encoder.of["train"]["mean"].double(), encoder.of["test"]["mean"].double()
    mean, std = x.mean(0), x.std(0, correction=0)
    oracle = LogisticRegression(C=result.chosen["C"], tol=1e-8, solver="newton-cholesky")  # type: ignore[arg-type]
    oracle.fit(((x - mean) / std).numpy(), data.train.labels.numpy())
    right = oracle.predict(((z - mean) / std).numpy()) == data.test.labels.numpy()
    assert (result.correct == right).mean() > 0.998
    assert 40 < top1(result) < 95
    json.dumps(result.chosen)


@pytest.mark.parametrize("evaluator", [Logistic(**QUICK), LowShot((0.2,), 2, **QUICK)], ids=["logistic", "lowshot"])
class TestProtocol:
    """What every classifier owes."""

    def test_separable_classes_are_all_right(self, evaluator: Evaluator) -> None:
        assert top1(evaluator.run(*problem(sep=30))) == 100.0

    def test_random_labels_are_chance(self, evaluator: Evaluator) -> None:
        result = evaluator.run(*problem(n_test=2000, random_labels=True))
        assert abs(top1(result) - 20) < 4 * 100 * math.sqrt(0.2 * 0.8 / 2000)

    def test_test_images_do_not_choose(self, evaluator: Evaluator) -> None:
        encoder, data = problem()
        before = evaluator.run(encoder, data)
        assert encoder.asked.count("test") == 1
        assert encoder.asked[-1] == "test"
        data.test.labels.copy_(data.test.labels.flip(0))
        after = evaluator.run(encoder, data)
        for key in ("pooling", "C", "dev_top1"):
            assert after.chosen[key] == before.chosen[key]
        assert top1(after) < top1(before) - 15

    def test_scale_and_offset_of_each_dimension_do_not_matter(self, evaluator: Evaluator) -> None:
        encoder, data = problem()
        before = evaluator.run(encoder, data)
        for split in encoder.of.values():
            split["mean"] = (split["mean"] + 5) * torch.logspace(-3, 3, 12)
        assert top1(evaluator.run(encoder, data)) == pytest.approx(top1(before), abs=0.5)

    def test_permuted_classes_change_nothing(self, evaluator: Evaluator) -> None:
        encoder, data = problem()
        before = evaluator.run(encoder, data)
        new = torch.tensor([3, 0, 1, 4, 2])
        for split in (data.train, data.fit, data.dev, data.test):
            split.labels.copy_(new[split.labels])
        # Other draws of the low-shot images, for their random numbers go by the order of classes.
        assert top1(evaluator.run(encoder, data)) == pytest.approx(
            top1(before), abs=0.5 if isinstance(evaluator, Logistic) else 6
        )

    def test_duplicated_test_set_keeps_the_accuracy_and_narrows_the_interval(self, evaluator: Evaluator) -> None:
        encoder, data = problem()
        before = evaluator.run(encoder, data)
        encoder.of["test"] = {name: x.repeat(2, 1) for name, x in encoder.of["test"].items()}
        pixels = torch.zeros(1200, 3, 1, 1, dtype=torch.uint8)
        twice = ImageSet("toy", "test", data.test.labels.repeat(2), tuple("abcde"), "0" * 64, pixels)
        after = evaluator.run(encoder, Data(data.train, data.fit, data.dev, twice))
        assert top1(after) == pytest.approx(top1(before), abs=0.2)
        assert after.metrics["top1"].high < before.metrics["top1"].high

    def test_same_result_twice(self, evaluator: Evaluator) -> None:
        torch.manual_seed(1)
        first = evaluator.run(*problem(n_train=200))
        torch.manual_seed(2)
        second = evaluator.run(*problem(n_train=200))
        assert first.metrics == second.metrics
        assert first.chosen == second.chosen


def test_dinos_penalty_is_c_10() -> None:
    """0.1 / n on L2-normalised features without intercept: scikit-learn's C = 10 (DINO repository, issue 121)."""
    encoder, data = problem()
    result = LowShot((1.0,), 1, C=(10.0,), inputs="normalised", intercept=False, poolings=("mean",)).run(encoder, data)
    x, z = (f["mean"].double() / f["mean"].double().norm(dim=1, keepdim=True) for f in encoder.of.values())
    oracle = LogisticRegression(C=10, fit_intercept=False, tol=1e-8, solver="newton-cholesky")
    right = oracle.fit(x.numpy(), data.train.labels.numpy()).predict(z.numpy()) == data.test.labels.numpy()
    assert top1(result) == pytest.approx(100 * right.mean(), abs=0.2)


def test_draws_are_balanced_nested_and_seeded() -> None:
    labels = torch.arange(1000) % 10
    small, large = (balanced_subset(labels, 10, fraction, 0) for fraction in (0.02, 0.1))
    assert torch.bincount(labels[small]).tolist() == [2] * 10
    assert torch.bincount(labels[large]).tolist() == [10] * 10
    assert set(small.tolist()) < set(large.tolist())
    assert torch.equal(small, balanced_subset(labels, 10, 0.02, 0))
    assert not torch.equal(small, balanced_subset(labels, 10, 0.02, 1))
    assert torch.equal(balanced_subset(labels, 10, 1.0, 5), torch.arange(1000))
    rare = torch.tensor([0] * 99 + [1])
    assert torch.bincount(rare[balanced_subset(rare, 2, 0.1, 0)]).tolist() == [5, 1]  # a class gives what it has
    assert len(balanced_subset(labels, 10, 0.001, 0)) == 10  # and one at least


def test_more_labels_help_and_every_fraction_is_reported() -> None:
    result = LowShot((0.02, 0.2, 1.0), 3, **QUICK).run(*problem())
    curve = [result.metrics[f"top1@{f}%"].value for f in ("2", "20", "100")]
    assert curve[0] < curve[1] < curve[2]
    assert result.metrics["top1"] == result.metrics["top1@2%"]
    assert result.chosen["labelled_images"] == {"2%": 10, "20%": 100, "100%": 500}
    assert result.chosen["population_std_over_draws"]["100%"] == 0  # type: ignore[index]
    json.dumps(result.chosen)


class Named:
    """Stands in for images that are read from files."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def key(self, index: int) -> str:
        return self.names[index]

    def take(self, at: np.ndarray) -> Named:
        return Named([self.names[i] for i in at])


def test_official_lists_load_from_a_path(tmp_path: Path) -> None:
    encoder, data = problem()
    names = [f"{data.train.classes[y]}/img_{i}.JPEG" for i, y in enumerate(data.train.labels.tolist())]
    pixels: object = Named(names)
    whole = ImageSet("toy", "train", data.train.labels, data.train.classes, "0" * 64, pixels)  # type: ignore[arg-type]
    order = torch.arange(500)
    with_names = Data(whole, whole.subset(order[100:], "train"), whole.subset(order[:100], "dev"), data.test)
    rows = balanced_subset(whole.labels, 5, 0.2, 0).tolist()
    file = tmp_path / "list.txt"
    file.write_text("\n".join(names[i].rpartition("/")[2] for i in rows) + "\n")
    assert listed(whole, str(file)).tolist() == rows
    result = LowShot(lists=(str(file),), **QUICK).run(encoder, with_names)
    assert result.chosen["labelled_images"] == {"listed": 100}
    c: float = result.chosen["C"]["listed"]  # type: ignore[index]
    head, _ = Logistic(**QUICK).fit(encoder.of["train"]["mean"][rows], whole.labels[rows], 5, [c])
    right = head.scores(encoder.of["test"]["mean"])[:, 0].argmax(1) == data.test.labels
    assert top1(result) == pytest.approx(100 * float(right.double().mean()))
    with pytest.raises(UserError, match="decoded in memory, without names"):
        listed(data.train, str(file))
    with pytest.raises(UserError, match="cannot read the list"):
        listed(whole, str(tmp_path / "none.txt"))
    file.write_text("other.JPEG")
    with pytest.raises(UserError, match="no line of"):
        listed(whole, str(file))
    file.write_text("\n".join(name for name in names if name.startswith(("a", "b"))))
    with pytest.raises(RunError, match="names no image of 3 classes"):
        listed(whole, str(file))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Logistic(C=()), "logistic: C must be positive"),
        (lambda: Logistic(C=(1.0, -1.0)), "logistic: C must be positive"),
        (lambda: Logistic(inputs="standardized"), "did you mean 'standardised'"),
        (lambda: Logistic(tol=0), "tol must be > 0"),
        (lambda: LowShot((0.0,)), r"fractions must lie in \(0, 1\]"),
        (lambda: LowShot(()), r"fractions must lie in \(0, 1\]"),
        (lambda: LowShot(draws=0), "draws must be at least 1"),
        (lambda: LowShot(C=(0.0,)), "C must be positive"),
    ],
)
def test_wrong_settings_are_named(make: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()  # type: ignore[operator]


def test_mean_per_class() -> None:
    """Against scikit-learn's balanced accuracy; the interval covers the truth on classes of uneven size."""
    random = np.random.default_rng(0)
    p, n = np.array([0.9, 0.5, 0.2]), np.array([400, 40, 20])
    labels = np.repeat(np.arange(3), n)
    covered = 0
    for _ in range(300):
        correct = random.random(len(labels)) < p[labels]
        found = class_metric(correct, labels)
        covered += found.low <= 100 * p.mean() <= found.high
    assert found.value == pytest.approx(
        100 * recall_score(labels, np.where(correct, labels, 3), labels=[0, 1, 2], average="macro")
    )
    assert 0.91 < covered / 300 < 0.98 and found.n == 460
    assert class_metric(np.array([True, False]), np.array([0, 2])).value == 50
    stub, data = problem()
    metrics = Logistic(**QUICK).run(stub, data).metrics
    assert metrics["mean_per_class"].value == pytest.approx(metrics["top1"].value, abs=3)

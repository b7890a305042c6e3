"""Retrieval against worked numbers, scikit-learn, brute force; the protocol."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from stubs import Stub
from torch import Tensor
from torchmetrics.functional.retrieval import retrieval_average_precision

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.evaluator import Data
from ssl_bench.evaluations.frozen.retrieval import Retrieval, average_precision, retrieve
from ssl_bench.evaluations.solvers.neighbours import normalize
from ssl_bench.utils.errors import RunError, UserError


def test_parity_with_worked_numbers() -> None:
    """The functions of Oxford and Paris Buildings and of Copydays."""
    assert average_precision(np.array([0, 2, 5]), "trapezoid") == pytest.approx(0.6777777778, abs=1e-9)
    assert average_precision(np.array([1, 3]), "trapezoid") / 2 == pytest.approx(0.1666666667, abs=1e-9)  # 2 of 4 found
    for ranking, right, junk, expected in (
        ([3, 1, 0, 4, 2], [1, 4], [3], 0.7916666667),
        ([0, 4, 2, 1, 3], [2, 3], [0, 1], 0.4166666667),
    ):
        kept = [image for image in ranking if image not in junk]
        ranks = np.flatnonzero(np.isin(kept, right))
        assert average_precision(ranks, "trapezoid") == pytest.approx(expected, abs=1e-9)


def points(n: int, seed: int, classes: int = 4, sep: float = 0.7) -> tuple[Tensor, Tensor]:
    centres = torch.randn(classes, 8, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    return normalize(sep * centres[labels] + torch.randn(n, 8, generator=generator)), labels


def test_gallery_search_equals_scikit_learn() -> None:
    (q, y), (bank, bank_y) = points(40, 1), points(150, 2)
    precision, first = retrieve(q, y, bank, bank_y)
    similarity = (q @ bank.T).numpy()
    for i in range(40):
        relevant = (bank_y == y[i]).numpy()
        assert precision[i] == pytest.approx(100 * average_precision_score(relevant, similarity[i]), abs=1e-6)
        above_zero = torch.from_numpy(similarity[i]) + 2  # torchmetrics takes the others for wrong
        assert precision[i] == pytest.approx(
            100 * float(retrieval_average_precision(above_zero, bank_y == y[i])), abs=1e-3
        )
        assert first[i] == np.flatnonzero(relevant[np.argsort(-similarity[i])])[0]


def test_leave_one_out_equals_scikit_learn_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    q, y = points(90, 3)
    precision, _ = retrieve(q, y, None, None)
    for i in range(90):
        others = torch.arange(90) != i
        relevant, similarity = (y[others] == y[i]).numpy(), (q[others] @ q[i]).numpy()
        assert precision[i] == pytest.approx(100 * average_precision_score(relevant, similarity), abs=1e-5)
    monkeypatch.setattr("ssl_bench.evaluations.frozen.retrieval.SIMILARITIES_PER_BLOCK", 1)  # one query at a time
    torch.testing.assert_close(retrieve(q, y, None, None)[0], precision, atol=0.5, rtol=0)


def test_ties_do_not_help() -> None:
    same = torch.ones(6, 2) / 2**0.5
    precision, first = retrieve(same, torch.tensor([0, 0, 0, 1, 1, 1]), None, None)
    worst = 100 * average_precision(np.array([3, 4]))
    assert precision.tolist() == pytest.approx([worst] * 6)
    assert first.tolist() == [3] * 6


def test_queries_without_a_match_are_left_out() -> None:
    precision, _ = retrieve(torch.eye(3), torch.tensor([0, 0, 1]), None, None)
    assert len(precision) == 2
    precision, _ = retrieve(torch.eye(3), torch.tensor([0, 2, 5]), torch.eye(3), torch.tensor([0, 1, 1]))
    assert precision.tolist() == [100]


def problem(sep: float = 0.7, labels: Tensor | None = None) -> tuple[Stub, Data]:
    sets, features = {}, {}
    for split, count, seed in (("train", 160, 1), ("test", 120, 2)):
        features[split], y = points(count, seed, sep=sep)
        y = y if labels is None or split == "train" else labels
        pixels = torch.zeros(count, 3, 1, 1, dtype=torch.uint8)
        sets[split] = ImageSet("toy", split, y, tuple(str(i) for i in range(200)), "0" * 64, pixels)
    order = torch.arange(160)
    fit, dev = sets["train"].subset(order[40:], "train"), sets["train"].subset(order[:40], "dev")
    return Stub(features), Data(sets["train"], fit, dev, sets["test"])


@pytest.mark.parametrize("gallery", ["test", "train"])
def test_protocol(gallery: str) -> None:
    encoder, data = problem()
    result = Retrieval(gallery).run(encoder, data)
    assert result.pooling == "mean"
    assert result.headline == "map"
    assert encoder.asked[-1] == "test"
    assert encoder.asked.count("test") == 1
    recall = [result.metrics[f"recall@k={k}"].value for k in (1, 5, 10)]
    assert recall == sorted(recall)
    assert result.metrics["map"].low < result.metrics["map"].value < result.metrics["map"].high
    assert Retrieval(gallery).run(encoder, data).metrics == result.metrics
    json.dumps(result.chosen)
    new = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    for split in (data.train, data.fit, data.dev, data.test):
        split.labels.copy_(new[split.labels])
    permuted = Retrieval(gallery).run(encoder, data)
    assert permuted.metrics["map"].value == pytest.approx(result.metrics["map"].value, abs=1e-3)
    encoder.of = {split: 7 * x for split, x in encoder.of.items()}
    assert Retrieval(gallery).run(encoder, data).metrics["map"].value == pytest.approx(
        result.metrics["map"].value, abs=1e-3
    )
    perfect = Retrieval(gallery).run(*problem(sep=30))
    assert all(metric.value == 100 for metric in perfect.metrics.values())
    chance = Retrieval(gallery, poolings=("mean",)).run(*problem(sep=0)).metrics["map"]
    assert abs(chance.value - 26) < 6  # a quarter of the gallery is right, and a little more for so short a ranking


def test_duplicated_test_set_keeps_the_number_with_a_gallery_of_training_images() -> None:
    (q, y), (bank, bank_y) = points(40, 1), points(150, 2)
    once, twice = retrieve(q, y, bank, bank_y)[0], retrieve(q.repeat(2, 1), y.repeat(2), bank, bank_y)[0]
    assert float(twice.mean()) == pytest.approx(float(once.mean()), abs=1e-3)


def test_no_match_at_all_stops() -> None:
    with pytest.raises(RunError, match="no image of toy has another of its class"):
        Retrieval().run(*problem(labels=torch.arange(120)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"k": (0,)}, "k must be positive"), ({"gallery": "tset"}, "did you mean 'test'"), ({"rule": "x"}, "unknown")],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Retrieval(**settings)  # type: ignore[arg-type]

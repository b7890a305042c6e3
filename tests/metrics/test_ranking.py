"""Average precision of labels: worked numbers, and torchmetrics on random scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multilabel_average_precision

from ssl_bench.metrics.ranking import RULES, average_precision, map_contributions, map_metrics, mean_average_precision

SCORES = np.array([[0.9, 0.1, 0.4], [0.8, 0.7, 0.4], [0.3, 0.6, 0.2], [0.2, 0.2, 0.9]])
TRUE = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]], dtype=bool)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("step", [0.833333, 1, 0.333333]),  # the tie of 0.4 with 0.4 counted together
        ("voc2007", [0.848485, 1, 0.5]),  # in the order of the images
        ("envelope", [0.833333, 1, 0.5]),
    ],
)
def test_worked_numbers(rule: str, expected: list[float]) -> None:
    found = [average_precision(SCORES[:, k], TRUE[:, k], rule) for k in range(3)]
    assert found == pytest.approx(expected, abs=1e-6)
    if rule == "step":
        assert mean_average_precision(SCORES, TRUE) == pytest.approx(0.722222, abs=1e-6)


def test_all_labels_in_one_ranking_are_another_quantity() -> None:
    assert average_precision(SCORES.flatten(), TRUE.flatten()) == pytest.approx(0.559286, abs=1e-6)


def test_torchmetrics_counts_a_label_without_an_image_as_nothing() -> None:
    scores, true = np.array([[0.9, 0.9, 0.9], [0.1, 0.5, 0.1]]), np.array([[0, 0, 1], [0, 1, 0]], dtype=bool)
    each = [average_precision(scores[:, k], true[:, k]) for k in (1, 2)]
    assert each == [0.5, 1] and mean_average_precision(scores, true) == 0.75
    theirs = multilabel_average_precision(torch.from_numpy(scores), torch.from_numpy(true).int(), 3, average="macro")
    assert theirs.item() == pytest.approx(0.5)


def test_a_label_that_no_image_has_is_left_out() -> None:
    more = np.concatenate([TRUE, np.zeros((4, 1), bool)], 1)
    scores = np.concatenate([SCORES, SCORES[:, :1]], 1)
    assert mean_average_precision(scores, more) == pytest.approx(0.722222, abs=1e-6)
    assert set(map_metrics(scores, more, ("a", "b", "c", "d"))) == {"map", "ap/a", "ap/b", "ap/c"}


@pytest.mark.parametrize("digits", [1, 6])
def test_against_torchmetrics(digits: int) -> None:
    random = np.random.default_rng(digits)
    scores, true = random.random((80, 5)).round(digits), random.random((80, 5)) < 0.3
    theirs = multilabel_average_precision(torch.from_numpy(scores), torch.from_numpy(true).int(), 5, average="none")
    ours = [average_precision(scores[:, k], true[:, k]) for k in range(5)]
    assert ours == pytest.approx(theirs.tolist(), abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_contributions_and_intervals(rule: str) -> None:
    random = np.random.default_rng(0)
    true = random.random((90, 4)) < 0.4
    scores = random.random((90, 4)) + 0.5 * true
    whole = map_metrics(scores, true, tuple("abcd"), rule)["map"]
    each = map_contributions(scores, true, rule)
    assert each.shape == (90, 1) and 100 * each.mean() == pytest.approx(whole.value)
    assert whole.low < whole.value < whole.high
    assert 1.96 * each.std(ddof=1) / 90**0.5 == pytest.approx((whole.high - whole.low) / 200, rel=0.5)

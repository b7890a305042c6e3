"""mIoU against worked numbers, torchmetrics and brute force; ratios, their intervals and what rows keep of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional import jaccard_index
from torchmetrics.segmentation import MeanIoU

from ssl_bench.metrics.intervals import ratio_metric
from ssl_bench.metrics.ratios import bootstrap, contributions, ratio
from ssl_bench.metrics.segmentation import iou_parts, pixel_counts, segmentation_metrics
from ssl_bench.results.rows.predictions import HEADER, decode, encode

TRUTH = torch.tensor([[0, 0, 1, 1], [2, 2, 255, 1], [0, 3, 3, 255]])
PREDICTION = torch.tensor([[0, 1, 1, 1], [2, 0, 0, 1], [0, 3, 1, 4]])
NAMES = ("a", "b", "c", "d", "e")


def test_worked_numbers() -> None:
    """Checked with torchmetrics 1.9; the absent class is left out of the mean."""
    found = segmentation_metrics(pixel_counts(PREDICTION, TRUTH, 5)[None], NAMES)
    assert found["miou"].value == pytest.approx(52.5)
    assert found["pixel_accuracy"].value == pytest.approx(70)
    assert found["mean_accuracy"].value == pytest.approx(66.6667, abs=1e-4)
    each = {name: metric.value for name, metric in found.items() if name.startswith("iou/")}
    assert each == pytest.approx({"iou/a": 50, "iou/b": 60, "iou/c": 50, "iou/d": 50})


def test_counts_and_other_means_of_the_worked_numbers() -> None:
    """torchmetrics has other means, and says 0 of a class that is nowhere."""
    counts = pixel_counts(PREDICTION, TRUTH, 5)
    assert counts.tolist() == [[2, 3, 3], [3, 5, 3], [1, 1, 2], [1, 1, 2], [0, 0, 0]]
    intersection, union = iou_parts(counts[None])[0, :4].double().T
    true = counts[:4, 2]
    of_pixels, weighted = intersection.sum() / union.sum(), (intersection / union * true).sum() / true.sum()
    assert of_pixels.item() == pytest.approx(0.538462, abs=1e-6) and weighted.item() == pytest.approx(0.53, abs=1e-6)

    def theirs(average: str, classes: int = 5) -> Tensor:
        return jaccard_index(PREDICTION, TRUTH, "multiclass", num_classes=classes, average=average, ignore_index=255)  # type: ignore[arg-type]

    assert theirs("micro").item() == pytest.approx(0.538462, abs=1e-6)
    assert theirs("weighted").item() == pytest.approx(0.53, abs=1e-6)
    # Without an ignore label, and a mean over images: pixels without class count as class 0.
    of_images = MeanIoU(num_classes=5, input_format="index")
    of_images.update(PREDICTION[None], torch.where(TRUTH == 255, 0, TRUTH)[None])
    assert of_images.compute().item() == pytest.approx(0.42, abs=1e-6)
    assert theirs("macro", 6).item() == pytest.approx(0.525) and theirs("none")[4] == 0


def confusion(predictions: list[Tensor], truths: list[Tensor], classes: int) -> list[list[int]]:
    """Pixel by pixel."""
    matrix = [[0] * classes for _ in range(classes)]
    for prediction, truth in zip(predictions, truths, strict=True):
        for said, true in zip(prediction.flatten().tolist(), truth.flatten().tolist(), strict=True):
            if true != 255:
                matrix[true][said] += 1
    return matrix


def test_the_confusion_matrix_of_the_worked_numbers() -> None:
    expected = [[2, 1, 0, 0, 0], [0, 3, 0, 0, 0], [1, 0, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]
    assert confusion([PREDICTION], [TRUTH], 5) == expected


def random_masks(n: int, classes: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Of different sizes, some pixels ignored, some classes rare."""
    random = np.random.default_rng(seed)
    predictions, truths = [], []
    for _ in range(n):
        size = tuple(random.integers(2, 9, 2))
        truth = random.integers(0, classes - 1, size)
        prediction = np.where(random.random(size) < 0.6, truth, random.integers(0, classes, size))
        truths.append(torch.from_numpy(np.where(random.random(size) < 0.1, 255, truth)))
        predictions.append(torch.from_numpy(prediction))
    return predictions, truths


@pytest.mark.parametrize("seed", range(3))
def test_against_brute_force_and_torchmetrics(seed: int) -> None:
    predictions, truths = random_masks(12, 6, seed)
    pairs = zip(predictions, truths, strict=True)
    counts = torch.stack([pixel_counts(prediction, truth, 6) for prediction, truth in pairs])
    matrix = confusion(predictions, truths, 6)
    iou, accuracy = [], []
    for c in range(6):
        true, said = sum(matrix[c]), sum(row[c] for row in matrix)
        if true + said:
            iou.append(matrix[c][c] / (true + said - matrix[c][c]))
        if true:
            accuracy.append(matrix[c][c] / true)
    found = segmentation_metrics(counts, "abcdef")
    assert found["miou"].value == pytest.approx(100 * np.mean(iou))
    assert found["mean_accuracy"].value == pytest.approx(100 * np.mean(accuracy))
    whole = sum(matrix[c][c] for c in range(6)) / sum(map(sum, matrix))
    assert found["pixel_accuracy"].value == pytest.approx(100 * whole)
    flat = [torch.cat([each.flatten() for each in masks]) for masks in (predictions, truths)]
    theirs = jaccard_index(*flat, task="multiclass", num_classes=6, ignore_index=255, average="macro")
    assert found["miou"].value == pytest.approx(100 * float(theirs), abs=1e-4)
    assert all(metric.low <= metric.value <= metric.high for metric in found.values())


def test_the_set_is_pooled_and_not_averaged_over_images() -> None:
    parts = np.array([[[1.0, 1.0]], [[0.0, 9.0]]])
    assert ratio(parts) == pytest.approx(0.1)
    assert contributions(parts).mean() == pytest.approx(0.1)


def test_nothing_defined_is_zero() -> None:
    nothing = np.zeros((3, 2, 2))
    assert ratio(nothing) == 0
    assert contributions(nothing).tolist() == [0, 0, 0]


def sample(n: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    union = random.integers(1, 400, (n, 4))
    return np.stack([random.binomial(union, 0.5), union], axis=2)


def test_contributions_have_the_spread_of_the_bootstrap_and_of_new_draws() -> None:
    parts = sample(300, 0)
    linear = contributions(parts).std(ddof=1) / np.sqrt(300)
    assert bootstrap(parts).std() == pytest.approx(linear, rel=0.1)
    assert np.std([ratio(sample(300, seed)) for seed in range(1, 400)]) == pytest.approx(linear, rel=0.15)


def test_the_interval_covers_as_often_as_it_says() -> None:
    metrics = [ratio_metric(sample(60, seed)) for seed in range(200)]
    assert np.mean([metric.low <= 50 <= metric.high for metric in metrics]) > 0.9


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap(sample(40, 0))
    monkeypatch.setattr("ssl_bench.metrics.ratios._AT_ONCE", 1)
    assert np.array_equal(bootstrap(sample(40, 0)), whole)


def test_what_a_row_keeps() -> None:
    predictions, truths = random_masks(30, 6, 1)
    pairs = zip(predictions, truths, strict=True)
    parts = iou_parts(torch.stack([pixel_counts(said, true, 6) for said, true in pairs])).numpy()
    content = encode(parts)
    assert len(content) == HEADER + 30 * 6 * 2 * 2
    found = decode(content, 30)
    assert found is not None
    assert 100 * found.mean() == pytest.approx(100 * ratio(parts), abs=0.025)  # as `check` asks
    assert np.abs(found - contributions(parts)).max() < 0.01
    assert decode(content, 29) is None
    assert decode(content[:-2], 30) is None
    turned = encode(parts[..., ::-1])  # more intersection than union
    assert decode(turned, 30) is None
    assert decode(content, 0) is None

"""Average precision of COCO: worked numbers of pycocotools, and torchmetrics on random detections."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_bench.metrics.detection import (
    RECALLS,
    THRESHOLDS,
    Found,
    contributions,
    detection_metrics,
    match,
    pair_iou,
    pooled,
    table,
)

Box = tuple[float, float, float, float]


def one(image: int, truths: list[tuple[Box, int, bool]], found: list[tuple[Box, int, float]]) -> list[Found]:
    """Boxes as x, y, width, height; class; crowd or score."""

    def boxes(of: list[Box]) -> Tensor:
        values = torch.tensor(of, dtype=torch.float64).reshape(-1, 4)
        return torch.cat([values[:, :2], values[:, :2] + values[:, 2:]], 1)

    a, b = boxes([box for box, _, _ in found]), boxes([box for box, _, _ in truths])
    crowd = torch.tensor([crowd for _, _, crowd in truths], dtype=torch.bool)
    labels = torch.tensor([label for _, label, _ in truths], dtype=torch.int64)
    return match(
        image,
        pair_iou(a, b, crowd),
        torch.tensor([score for _, _, score in found], dtype=torch.float64),
        torch.tensor([label for _, label, _ in found], dtype=torch.int64),
        (a[:, 2:] - a[:, :2]).prod(1),
        (labels, (b[:, 2:] - b[:, :2]).prod(1), crowd),
    )


TRUTHS: list[list[tuple[Box, int, bool]]] = [
    [((10, 10, 40, 40), 1, False), ((60, 60, 20, 20), 1, False)],
    [((20, 20, 50, 50), 1, False), ((5, 5, 30, 60), 2, False)],
]
FOUND: list[list[tuple[Box, int, float]]] = [
    [((12, 12, 40, 40), 1, 0.9), ((10, 10, 38, 36), 1, 0.8), ((61, 60, 20, 20), 1, 0.6)],
    [((22, 18, 50, 52), 1, 0.7), ((5, 10, 30, 50), 2, 0.5), ((50, 50, 20, 20), 2, 0.95)],
]
EXTRA: tuple[Box, int, float] = ((62, 12, 10, 10), 1, 0.85)


def of(truths: list[list[tuple[Box, int, bool]]], found: list[list[tuple[Box, int, float]]]) -> list[Found]:
    return [each for i in range(len(truths)) for each in one(i, truths[i], found[i])]


def test_the_numbers_of_pycocotools() -> None:
    """pycocotools 2.0 on two images of 100 x 100."""
    found = of(TRUTHS, FOUND)
    got = table(pooled(found))
    expected = {"ap": 0.508663, "ap50": 0.667079, "ap75": 0.667079, "ap_small": 0.9, "ap_medium": 0.675578}
    assert got == pytest.approx(expected, abs=1e-6)  # and none of large ones, where there are none
    each = pooled(found)
    assert [each[k].precision(0).mean() for k in (1, 2)] == pytest.approx([0.667327, 0.35], abs=1e-6)
    assert [each[k].precision(0)[0] for k in (1, 2)] == pytest.approx([0.834158, 0.5], abs=1e-6)
    for limit, recall in ((1, 0.25), (10, 0.766667), (100, 0.766667)):
        values = [of_class.recall(0) for of_class in pooled(found, limit).values()]
        assert np.mean(values) == pytest.approx(recall, abs=1e-6)


def test_the_overlaps() -> None:
    boxes = torch.tensor([[12.0, 12, 52, 52], [10, 10, 48, 46], [61, 60, 81, 80]])
    truths = torch.tensor([[10.0, 10, 50, 50], [60, 60, 80, 80]])
    found = pair_iou(boxes, truths, torch.tensor([False, False]))
    assert found[:, 0].tolist() == pytest.approx([0.822323, 0.855, 0], abs=1e-6)
    assert found[2, 1].item() == pytest.approx(0.904762, abs=1e-6)
    boxes, truths = (
        torch.tensor([[22.0, 18, 72, 70], [5, 10, 35, 60]]),
        torch.tensor([[20.0, 20, 70, 70], [5, 5, 35, 65]]),
    )
    found = pair_iou(boxes, truths, torch.tensor([False, False]))
    assert found.diag().tolist() == pytest.approx([0.888889, 0.833333], abs=1e-6)


def test_a_class_without_objects_is_left_out() -> None:
    truths = [[each for each in image if each[1] == 1] for image in TRUTHS]
    found = [[each for each in image if each[1] == 1] for image in FOUND]
    got = table(pooled(of(truths, found)))
    assert (got["ap"], got["ap50"]) == pytest.approx((0.667327, 0.834158), abs=1e-6)
    assert table(pooled(of(truths, FOUND)))["ap"] == pytest.approx(0.667327, abs=1e-6)


def test_a_crowd_takes_the_detections_that_lie_in_it() -> None:
    more = [FOUND[0], [*FOUND[1], EXTRA]]
    got = table(pooled(of(TRUTHS, more)))
    assert (got["ap"], got["ap50"]) == pytest.approx((0.465495, 0.617327), abs=1e-6)
    crowded = [TRUTHS[0], [*TRUTHS[1], ((60.0, 10.0, 30.0, 30.0), 1, True)]]
    got = table(pooled(of(crowded, more)))
    assert (got["ap"], got["ap50"]) == pytest.approx((0.508663, 0.667079), abs=1e-6)


def drawn(n: int, seed: int, masks: bool) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Random truths and detections near them, of three classes; as torchmetrics takes them."""
    random = np.random.default_rng(seed)
    truths, found = [], []
    for _ in range(n):
        # torchmetrics 1.9 forgets the masks found in images where there is nothing to find.
        count, more = random.integers(int(masks), 4), random.integers(0, 4)
        corner, side = random.integers(0, 60, (count, 2)), random.integers(4, 60, (count, 2))
        at = random.integers(0, max(1, count), more + count)
        near = np.concatenate([corner, corner + side], 1)
        moved = near[at] + random.integers(-3, 4, (more + count, 4)) if count else np.tile([5, 5, 40, 40], (more, 1))
        labels = random.integers(1, 4, count)
        guessed = np.where(random.random(len(moved)) < 0.7, labels[at], 1) if count else np.ones(len(moved), int)
        truth = {"boxes": torch.tensor(near).float(), "labels": torch.tensor(labels)}
        truth["iscrowd"] = torch.tensor(random.random(count) < 0.15).int()
        guess = {"boxes": torch.tensor(moved).float(), "labels": torch.tensor(guessed)}
        guess["scores"] = torch.tensor(random.integers(1, 9, len(moved)) / 10).float()  # with ties
        for each in (truth, guess) if masks else ():
            each["masks"] = filled(each["boxes"])
        truths.append(truth)
        found.append(guess)
    return truths, found


def filled(boxes: Tensor) -> Tensor:
    """Ellipses in the boxes, on 128 x 128 pixels."""
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clamp(min=3) / 2
    where = [(x - c[0]) ** 2 / h[0] ** 2 + (y - c[1]) ** 2 / h[1] ** 2 <= 1 for c, h in zip(centre, half, strict=True)]
    return torch.stack(where) if len(boxes) else torch.zeros(0, 128, 128, dtype=torch.bool)


def matched(truths: list[dict[str, Tensor]], guesses: list[dict[str, Tensor]], kind: str) -> list[Found]:
    found = []
    for i, (truth, guess) in enumerate(zip(truths, guesses, strict=True)):
        crowd = truth["iscrowd"].bool()
        areas = [
            each["masks"].sum((1, 2)).double()
            if kind == "masks"
            else (each["boxes"][:, 2:] - each["boxes"][:, :2]).prod(1).double()
            for each in (guess, truth)
        ]
        overlap = pair_iou(guess[kind], truth[kind], crowd)
        found += match(i, overlap, guess["scores"], guess["labels"], areas[0], (truth["labels"], areas[1], crowd))
    return found


@pytest.mark.parametrize("kind", ["boxes", "masks"])
@pytest.mark.parametrize("seed", range(4))
def test_against_torchmetrics(kind: str, seed: int) -> None:
    pytest.importorskip("faster_coco_eval")
    from torchmetrics.detection import MeanAveragePrecision

    truths, guesses = drawn(25, seed, kind == "masks")
    oracle = MeanAveragePrecision(
        iou_type="segm" if kind == "masks" else "bbox",
        backend="faster_coco_eval",
        class_metrics=True,
        # Its own are float32, in which an overlap of 0.6 is none of 0.6; pycocotools has these.
        iou_thresholds=THRESHOLDS.tolist(),
        rec_thresholds=RECALLS.tolist(),
    )
    oracle.update(guesses, truths)
    expected = oracle.compute()
    found = matched(truths, guesses, kind)
    got = table(pooled(found))
    pairs = {"ap": "map", "ap50": "map_50", "ap75": "map_75"} | {f"ap_{k}": f"map_{k}" for k in ("small", "medium")}
    for ours, theirs in pairs.items():
        assert got.get(ours, -1) == pytest.approx(float(expected[theirs]), abs=1e-6), ours
    by_class = {k: float(np.nan_to_num(each.precision(0).mean(), nan=-1)) for k, each in pooled(found).items()}
    theirs_by_class = dict(zip(expected["classes"].tolist(), expected["map_per_class"].tolist(), strict=True))
    assert by_class == pytest.approx(theirs_by_class, abs=1e-6)


def test_intervals_and_contributions() -> None:
    found = matched(*drawn(60, 9, False), "boxes")
    metrics = detection_metrics(found, 60)
    whole = metrics["ap"]
    assert whole.low < whole.value < whole.high and whole.n == 60
    each = contributions(found, 60)
    assert each.shape == (60, 1)
    assert each.mean() == pytest.approx(whole.value / 100)
    rest = [f for f in found if f.image != 7]
    assert 60 * whole.value / 100 - 59 * table(pooled(rest))["ap"] - each[7, 0] == pytest.approx(
        np.mean(
            [60 * whole.value / 100 - 59 * table(pooled([f for f in found if f.image != i]))["ap"] for i in range(60)]
        )
        - whole.value / 100
    )
    half = 1.96 * each.std(ddof=1) / 60**0.5
    assert half == pytest.approx((whole.high - whole.low) / 200, rel=0.5)  # two estimates of one spread


def test_perfect_detections_and_none() -> None:
    truths, _ = drawn(20, 3, False)
    truths = [{**each, "iscrowd": torch.zeros_like(each["iscrowd"])} for each in truths]
    perfect = [{**each, "scores": torch.ones(len(each["labels"]))} for each in truths]
    assert all(metric.value == 100 for metric in detection_metrics(matched(truths, perfect, "boxes"), 20).values())
    nothing = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}] * 20
    assert detection_metrics(matched(truths, nothing, "boxes"), 20)["ap"].value == 0

"""Average precision of detected objects as COCO counts it (Lin et al., ECCV 2014; pycocotools' `cocoeval.py`).

torchmetrics' `MeanAveragePrecision` gives the same numbers (the tests compare them), but one for the set: intervals and
paired tests need what becomes of it without some of the images, a thousand times. And its 1.9 has thresholds in float32
and forgets the masks found in images where there is nothing to find.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_area

from ssl_bench.metrics.intervals import jackknife_groups, jackknife_metric
from ssl_bench.metrics.metric import Metric

Array = np.ndarray[Any, np.dtype[Any]]

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the intersection over union of a hit
RECALLS = np.linspace(0, 1, 101)
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}  # pixels
MOST = 100  # detections that count, of an image and class


@dataclass(frozen=True, eq=False)
class Found:
    """What became of the detections of one class in one image.

    Attributes:
        image: Its number.
        label: The class.
        scores: (D,), falling.
        hits: (A, T, D) bool, for each of `AREAS` and `THRESHOLDS`.
        ignored: (A, T, D) bool: neither hit nor miss.
        truths: (A,) objects to be found.
    """

    image: int
    label: int
    scores: Array
    hits: Array
    ignored: Array
    truths: Array


def pair_iou(a: Tensor, b: Tensor, crowd: Tensor) -> Tensor:
    """Intersection over union of boxes or masks; with a crowd, over the area of the detection alone.

    Args:
        a: Detections, (D, 4) float boxes x0, y0, x1, y1 or (D, H, W) bool masks.
        b: Truths, likewise.
        crowd: (G,) bool.

    Returns:
        (D, G) float64.

    Example:
        >>> one, two = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 4.0, 2.0]])
        >>> pair_iou(one, two, torch.tensor([False])).item(), pair_iou(one, two, torch.tensor([True])).item()
        (0.25, 0.5)
    """
    if a.ndim == 3:
        a, b = a.flatten(1).float(), b.flatten(1).float()
        areas, others, both = a.sum(1).double(), b.sum(1).double(), (a @ b.T).double()
    else:
        a, b = a.double(), b.double()
        areas, others = box_area(a), box_area(b)
        sides = torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])
        both = sides.clamp(min=0).prod(2)
    union = torch.where(crowd, areas[:, None].expand_as(both), areas[:, None] + others - both)
    return both / union.clamp(min=1e-12)


def match(
    image: int, overlap: Tensor, scores: Tensor, labels: Tensor, areas: Tensor, truth: tuple[Tensor, Tensor, Tensor]
) -> list[Found]:
    """Give each detection of an image, the surest first, the free object of its class that it overlaps most.

    Args:
        image: Its number.
        overlap: (D, G) float, `pair_iou`.
        scores: (D,) float.
        labels: (D,) int64.
        areas: (D,) float, of the detections, pixels.
        truth: Of the objects: labels (G,) int64, areas (G,) float, and crowd (G,) bool: whether one stands for many,
            which is never missed and takes any number of detections.
    """
    found = []
    own, sizes, crowd = (each.numpy() for each in truth)
    for label in sorted({*labels.tolist(), *own.tolist()}):
        at = (labels == label).nonzero().squeeze(1)
        at = at[scores[at].sort(descending=True, stable=True).indices[:MOST]]
        mine = np.flatnonzero(own == label)
        outside = np.stack([(sizes[mine] < low) | (sizes[mine] > high) for low, high in AREAS.values()])
        ignored = outside | crowd[mine]  # (A, G)
        beyond = np.stack([(areas[at].numpy() < low) | (areas[at].numpy() > high) for low, high in AREAS.values()])
        hits, neither = _matched(overlap[at][:, mine].numpy(), crowd[mine], ignored, beyond)
        found.append(Found(image, label, scores[at].numpy(), hits, neither, (~ignored).sum(1)))
    return found


def _matched(overlap: Array, crowd: Array, ignored: Array, beyond: Array) -> tuple[Array, Array]:
    """Hits and ignored detections (A, T, D); overlap (D, G), crowd (G,), ignored (A, G), beyond the areas (A, D)."""
    count, objects = overlap.shape
    shape = (len(AREAS), len(THRESHOLDS), count)
    hits, neither = np.zeros(shape, bool), np.repeat(beyond[:, None], len(THRESHOLDS), 1)
    if not objects:
        return hits, neither
    taken = np.zeros((*shape[:2], objects), bool)
    least = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    area, threshold = np.ogrid[: shape[0], : shape[1]]
    for d in range(count):
        free = (~taken | crowd) & (overlap[d] >= least)
        counted = free & ~ignored[:, None]
        free = np.where(counted.any(2, keepdims=True), counted, free)  # one that counts is taken before the others
        last = np.argmax(np.where(free, overlap[d], -1)[..., ::-1], axis=2)
        best = objects - 1 - last  # of equal ones the last
        there = free.any(2)
        taken[area, threshold, best] |= there
        of_ignored = np.take_along_axis(ignored, best, 1)
        hits[:, :, d] = there & ~of_ignored
        neither[:, :, d] = np.where(there, of_ignored, neither[:, :, d])
    return hits, neither


class Pooled:
    """The detections of one class in all images, the surest first.

    Args:
        found: Of that class, in the order of images.
        limit: Detections of an image that count.
    """

    def __init__(self, found: Sequence[Found], limit: int = MOST) -> None:
        scores = np.concatenate([each.scores[:limit] for each in found])
        order = np.argsort(-scores, kind="stable")
        self.images = np.concatenate([np.full(len(each.scores[:limit]), each.image) for each in found])[order]
        self.hits = np.concatenate([each.hits[:, :, :limit] for each in found], 2)[:, :, order]
        self.ignored = np.concatenate([each.ignored[:, :, :limit] for each in found], 2)[:, :, order]
        self.owners, self.truths = np.array([each.image for each in found]), np.stack([each.truths for each in found])

    def precision(self, area: int, without: Array | None = None) -> Array:
        """Average precision (T,) at each threshold; NaN if there is nothing to find.

        Args:
            area: Which of `AREAS`.
            without: Images (K,) to leave out.
        """
        hits, ignored, objects = self._rest(area, without)
        if not objects:
            return np.full(len(THRESHOLDS), np.nan)
        right, wrong = np.cumsum(hits, 1), np.cumsum(~hits & ~ignored, 1)
        precision = right / np.maximum(right + wrong, 1)
        precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        padded = np.concatenate([precision, np.zeros((len(precision), 1))], 1)
        # The first place where each recall is reached; behind the last where none does.
        places = [np.searchsorted(recall, RECALLS) for recall in right / objects]
        return np.take_along_axis(padded, np.array(places), 1).mean(1)

    def recall(self, area: int) -> Array:
        """Share of the objects that are found (T,); NaN if there is nothing to find."""
        hits, _, objects = self._rest(area, None)
        return hits.sum(1) / objects if objects else np.full(len(THRESHOLDS), np.nan)

    def _rest(self, area: int, without: Array | None) -> tuple[Array, Array, int]:
        hits, ignored, truths = self.hits[area], self.ignored[area], self.truths[:, area]
        if without is None:
            return hits, ignored, int(truths.sum())
        kept, owners = ~np.isin(self.images, without), ~np.isin(self.owners, without)
        return hits[:, kept], ignored[:, kept], int(truths[owners].sum())


def pooled(found: Iterable[Found], limit: int = MOST) -> dict[int, Pooled]:
    """The detections of each class that has an object or a detection."""
    by_class: dict[int, list[Found]] = {}
    for each in found:
        by_class.setdefault(each.label, []).append(each)
    return {label: Pooled(by_class[label], limit) for label in sorted(by_class)}


def table(classes: dict[int, Pooled], without: Array | None = None) -> dict[str, float]:
    """AP at all overlaps and at two, and of small, medium and large objects: shares, means over classes with an object.

    Those that nothing is known of are left out.
    """
    areas = {name: np.array([each.precision(i, without) for each in classes.values()]) for i, name in enumerate(AREAS)}
    parts = {"ap": areas["all"], "ap50": areas["all"][:, 0], "ap75": areas["all"][:, 5]}
    parts |= {f"ap_{name}": values for name, values in areas.items() if name != "all"}
    return {name: float(np.nanmean(values)) for name, values in parts.items() if not np.isnan(values).all()}


def detection_metrics(found: Sequence[Found], n: int, prefix: str = "") -> dict[str, Metric]:
    """The numbers of `table`, in percent, with intervals of the jackknife over 20 groups of images.

    Args:
        found: `match` of all images, in their order.
        n: Images.
        prefix: In front of the names.
    """
    classes, groups = pooled(found), jackknife_groups(n).numpy()
    whole = table(classes)
    rest = [table(classes, np.flatnonzero(groups == g)) for g in range(groups.max() + 1)]
    return {
        f"{prefix}{name}": jackknife_metric(
            100 * value, [100 * each[name] for each in rest if name in each], n, (0.0, 100.0)
        )
        for name, value in whole.items()
    }


def contributions(found: Sequence[Found], n: int) -> Array:
    """What each image adds to the average precision: n times the whole less n - 1 times that without it.

    Pseudo-values of the jackknife (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 11), moved by
    their bias, so that their mean is the average precision. Single ones may lie outside [0, 1].

    Returns:
        (n, 1) float64.
    """
    classes = pooled(found)
    each = {label: of.precision(0) for label, of in classes.items()}
    seen: dict[int, list[int]] = {}
    for one in found:
        seen.setdefault(one.image, []).append(one.label)
    value = np.nanmean(list(each.values()))
    without = np.full(n, value)
    for image, labels in seen.items():
        changed = each | {label: classes[label].precision(0, np.array([image])) for label in labels}
        rest = np.array(list(changed.values()))
        without[image] = 0.0 if np.isnan(rest).all() else np.nanmean(rest)
    pseudo = n * value - (n - 1) * without
    return (pseudo + value - pseudo.mean())[:, None]

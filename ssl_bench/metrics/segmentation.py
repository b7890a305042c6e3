"""How well predicted masks agree with the truth: mIoU and accuracies, pooled over all pixels of a set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_bench.metrics.intervals import ratio_metric
from ssl_bench.metrics.metric import Metric


def pixel_counts(prediction: Tensor, truth: Tensor, classes: int, ignore: int = 255) -> Tensor:
    """What an image adds to the confusion matrix, as far as intersections and unions need it.

    Args:
        prediction: (H, W) integers in [0, classes).
        truth: (H, W) integers in [0, classes), or `ignore` for pixels that count nowhere.
        classes: C.
        ignore: See `truth`.

    Returns:
        (C, 3) int64: of each class the pixels that are rightly predicted, predicted, and true.

    Example:
        >>> pixel_counts(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 255]]), classes=2).tolist()
        [[1, 1, 2], [0, 1, 0]]
    """
    # torchmetrics' JaccardIndex is one number for the set; intervals and paired tests need the counts of each image.
    counted = truth != ignore
    prediction, truth = prediction[counted].long(), truth[counted].long()
    right = truth[prediction == truth]
    return torch.stack([torch.bincount(each, minlength=classes) for each in (right, prediction, truth)], dim=1)


def iou_parts(counts: Tensor) -> Tensor:
    """Intersection and union (N, C, 2) of the counts (N, C, 3) of N images."""
    right, predicted, true = counts.unbind(2)
    return torch.stack([right, predicted + true - right], dim=2)


def segmentation_metrics(counts: Tensor, classes: Sequence[str]) -> dict[str, Metric]:
    """mIoU, mean and overall accuracy, and the IoU of each class, in percent, with bootstrap intervals over images.

    IoU = true positives / (true positives + false positives + false negatives) over all pixels of the set; classes that
    are neither there nor predicted are left out of the mean, and so are, of the mean accuracy, those that aren't there.

    Args:
        counts: (N, C, 3) int64, `pixel_counts` of each image.
        classes: Their names.
    """
    right, _, true = counts.unbind(2)
    iou = iou_parts(counts)
    accuracy = torch.stack([right, true], dim=2)
    metrics = {
        "miou": ratio_metric(iou.numpy()),
        "mean_accuracy": ratio_metric(accuracy.numpy()),
        "pixel_accuracy": ratio_metric(accuracy.sum(1, keepdim=True).numpy()),
    }
    found = {name: iou[:, c : c + 1] for c, name in enumerate(classes)}
    return metrics | {
        f"iou/{name}": ratio_metric(parts.numpy()) for name, parts in found.items() if parts[..., 1].any()
    }

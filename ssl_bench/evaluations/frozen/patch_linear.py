"""Segmentation by logistic regression on frozen tokens: a convex problem, solved in minutes on cached tokens.

Ours, for comparisons on small budgets; the papers' linear head is `segmentation_linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.dense import common_size, maps_of, patch_classes, resized_mask
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result, at_edge
from ssl_bench.evaluations.frozen.logistic import Logistic
from ssl_bench.evaluations.frozen.segmentation_knn import SegmentationKNN, masks_shown, score
from ssl_bench.evaluations.heads import Heads
from ssl_bench.evaluations.pictures import Gallery
from ssl_bench.metrics.intervals import ratio_metric
from ssl_bench.metrics.segmentation import iou_parts, segmentation_metrics
from ssl_bench.utils.bounds import Count, Positive, Seed
from ssl_bench.utils.errors import RunError, UserError

MAJORITY = 0.5  # of the pixels of a patch that must be of one class for the patch to be learnt from


class PatchLinear(Evaluator):
    """Logistic regression from standardised tokens to the class that most pixels of their patches have.

    Patches without a class that half of their pixels have are left out. C is chosen by mIoU on dev, of heads fitted to
    patches of fit; the head of that C is then fitted to patches of all training images. Scores are enlarged to the size
    of the image, and the largest wins; images and masks are resized as in `SegmentationKNN`.

    Args:
        C: Inverse strengths of the penalty.
        patches: To learn from at most, the same number from every image, drawn once.
        seed: Of the draw.

    Raises:
        UserError: A number out of range.
    """

    version: ClassVar[int] = 1
    task: ClassVar[str] = "segmentation"
    needs: ClassVar[str] = "masks"
    metric_help: ClassVar[dict[str, str]] = SegmentationKNN.metric_help
    poolings = ()

    def __init__(self, C: tuple[Positive, ...] = (1e-3, 1e-1, 10.0), patches: Count = 50_000, seed: Seed = 0) -> None:
        self.C, self.patches, self.seed = tuple(C), patches, seed
        self.head = Logistic(self.C)
        if patches < 1 or seed < 0:
            raise UserError(f"patch-linear: patches must be at least 1 and seed at least 0, got {patches} and {seed}")

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Choose C on dev, fit it again on all training images, score test once.

        Raises:
            UserError: The encoder has no map of tokens.
            RunError: Maps that mean nothing, no patch of one class, or an image that can't be read any more.
        """
        assert data.train.targets is not None
        names, size = data.train.targets.classes, common_size(data.train)
        heads, unfinished = self._fit(encoder, data.fit, size, self.C)
        on_dev = [ratio_metric(iou_parts(counts).numpy()).value for counts in _counts(encoder, data.dev, size, heads)]
        c = self.C[max(range(len(on_dev)), key=on_dev.__getitem__)]
        final, left = self._fit(encoder, data.train, size, [c])
        gallery = masks_shown(data.test)
        (counts,) = _counts(encoder, data.test, size, final, gallery)
        chosen: dict[str, object] = {
            "C": c,
            "C_at_edge": at_edge(c, self.C),
            "dev_miou": {f"{each:g}": value for each, value in zip(self.C, on_dev, strict=True)},
            "unfinished": unfinished + left,
            "size": list(size),
        }
        metrics, picture = segmentation_metrics(counts, names), gallery.picture()
        return Result(metrics, "miou", iou_parts(counts).numpy(), chosen, "patches", picture=picture)

    def _fit(self, encoder: Encoder, images: ImageSet, size: tuple[int, int], C: Sequence[float]) -> tuple[Heads, int]:
        """A head for each C, and how many were stopped before their minimum."""
        assert images.targets is not None
        classes = len(images.targets.classes)
        generator = torch.Generator().manual_seed(self.seed)
        each = max(1, self.patches // len(images))
        tokens, labels = [], []
        for batch, maps in maps_of(encoder, images, size):
            for i, found in zip(batch, maps, strict=True):
                share, label = patch_classes(
                    resized_mask(images.targets.mask(i), size), (found.shape[1], found.shape[2]), classes
                ).max(1)
                known = (share >= MAJORITY).nonzero().squeeze(1)
                known = known[torch.randperm(len(known), generator=generator)[:each]]
                tokens.append(found.flatten(1).T[known])
                labels.append(label[known])
        y = torch.cat(labels)
        if len(y.unique()) < 2:
            raise RunError(f"patch-linear: the patches of {images.name} {images.split} have one class or none")
        return self.head.fit(torch.cat(tokens), y, classes, C)


def _counts(
    encoder: Encoder, images: ImageSet, size: tuple[int, int], heads: Heads, gallery: Gallery | None = None
) -> list[Tensor]:
    """`pixel_counts` (N, C, 3) of all images by each head; a gallery is of one head."""
    found: list[list[Tensor]] = [[] for _ in range(heads.bias.shape[0])]
    for batch, maps in maps_of(encoder, images, size):
        scores = heads.scores(maps.flatten(2).transpose(1, 2).flatten(0, 1))
        for at, counts in enumerate(found):
            of = scores[:, at].unflatten(0, (len(batch), maps.shape[2], maps.shape[3])).permute(0, 3, 1, 2)
            counts += score(of, images, batch, size, gallery)
    return [torch.stack(counts) for counts in found]

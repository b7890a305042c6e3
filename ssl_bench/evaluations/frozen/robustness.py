"""Robustness: how much accuracy is left when the test images are corrupted.

The benchmark of Hendrycks and Dietterich (ICLR 2019, arXiv:1903.12261) with a linear head on frozen features: the head
never sees a corrupted image. The corruptions are in `corruptions/`: all of the paper's but frost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from ssl_bench.data.corruptions import CORRUPTIONS, SMALLEST, corrupt
from ssl_bench.data.datasets import ImageSet, hold_out
from ssl_bench.data.images import pack
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result, check_features
from ssl_bench.evaluations.frozen.logistic import Logistic
from ssl_bench.evaluations.heads import Heads
from ssl_bench.metrics.intervals import jackknife_groups, jackknife_metric, mean_metric
from ssl_bench.metrics.metric import Metric
from ssl_bench.utils.bounds import Count, Positive, Seed
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.utils.progress import progress
from ssl_bench.views.evaluation import resize_crop

EXTRA = ("speckle_noise", "gaussian_blur", "saturate")  # the paper's, for validation
MAIN = tuple(name for name in CORRUPTIONS if name not in EXTRA)


class Robustness(Evaluator):
    """Accuracy of a logistic head on corrupted test images, averaged over corruptions and severities.

    The head is the one of `Logistic`: pooling and C chosen on dev, a refit on all training images, everything clean.
    Images are corrupted after the crop of the test transform, at the encoder's size (ImageNet-C), or before they are
    enlarged if they are smaller (CIFAR-C); the noise of an image follows from the seed, its place among the test
    images, the corruption and the severity, so that all encoders meet the same images.

    Args:
        corruptions: Which, out of `CORRUPTIONS`; by default the paper's fifteen without frost.
        severities: Out of 1 to 5.
        images: Test images at most: drawn once, of every class its share.
        C: See `Logistic`.
        poolings: Features to compare.
        seed: Seed of the images and of the noise.

    Raises:
        UserError: An unknown corruption, an empty list, or a number out of range.
    """

    version: ClassVar[int] = 3
    metric_help: ClassVar[dict[str, str]] = {
        "corrupted_top1": "accuracy on corrupted images, mean over corruptions and severities, percent",
        "clean_top1": "accuracy on the same images without corruption, percent",
        "relative_drop": "100 (clean_top1 - corrupted_top1) / clean_top1, percent",
        "CORRUPTION": "accuracy under it, mean over severities, percent",
    }

    def __init__(
        self,
        corruptions: tuple[str, ...] = MAIN,
        severities: tuple[Count, ...] = (1, 3, 5),
        images: Count = 2000,
        C: tuple[Positive, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
        poolings: tuple[str, ...] = ("cls", "mean"),
        seed: Seed = 0,
    ) -> None:
        self.corruptions, self.severities, self.images = tuple(corruptions), tuple(severities), images
        self.C, self.poolings, self.seed = tuple(C), tuple(poolings), seed
        for name in self.corruptions or ("",):
            if name not in CORRUPTIONS:
                raise unknown("corruption", name, CORRUPTIONS)
        if not self.severities or not set(self.severities) <= {1, 2, 3, 4, 5}:
            raise UserError(f"robustness: severities must be some of 1 to 5, got {self.severities}")
        if images < 1 or seed < 0:
            raise UserError(f"robustness: images must be at least 1 and seed at least 0, got {images} and {seed}")
        self.head = Logistic(self.C, poolings=self.poolings)

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Choose the head on clean dev images, then score clean and corrupted test images.

        Raises:
            UserError: The encoder has none of the poolings, or images are too small to corrupt.
            RunError: Features that mean nothing.
        """
        head, pooling, chosen = self.head.choose(encoder, data)
        shown = self._shown(data.test)
        clean = self._right(encoder, shown, head, pooling)
        network: Any = encoder.copy()
        sets = self._corrupted(shown, network.image_size)
        total = len(self.corruptions) * len(self.severities)
        right = torch.stack(
            [
                self._right(encoder, images, head, pooling)
                for images in progress(sets, f"{shown.name}: corruptions", total)
            ]
        )  # (corruptions x severities, N)
        corrupted = right.mean(0)
        metrics = {
            "corrupted_top1": mean_metric(corrupted),
            "clean_top1": mean_metric(clean),
            "relative_drop": relative_drop(clean, corrupted, self.seed),
        }
        by_corruption = right.unflatten(0, (len(self.corruptions), -1)).mean(1)
        metrics |= {name: mean_metric(rows) for name, rows in zip(self.corruptions, by_corruption, strict=True)}
        chosen |= {"images": len(shown)}
        return Result(metrics, "corrupted_top1", corrupted.numpy() / 100, chosen, pooling)

    def _shown(self, test: ImageSet) -> ImageSet:
        """The test images that are looked at."""
        if len(test) <= self.images:
            return test
        return replace(hold_out(test, self.images / len(test), self.seed)[1], split=test.split)

    def _right(self, encoder: Encoder, images: ImageSet, head: Heads, pooling: str) -> Tensor:
        """(N,) float64: 100 for each image that the head has right, otherwise 0."""
        features = encoder.features(images, [pooling])[pooling]
        check_features(features, pooling, f"{images.name} {images.split}", len(images))
        scores = head.scores(features)[:, 0]
        return 100 * (scores.argmax(1) == images.labels).double()

    def _corrupted(self, shown: ImageSet, size: tuple[int, int]) -> Iterator[ImageSet]:
        """One set for each corruption and severity, as a decoded test split of its own.

        Raises:
            UserError: Images that are too small.
        """
        places = range(len(shown)) if shown.origin is None else shown.origin[1].tolist()
        cropped = [cut(shown.images[i], size) for i in range(len(shown))]
        smallest = min(min(image.shape[1:]) for image in cropped)
        if smallest < SMALLEST:
            raise UserError(f"robustness: {shown.name} has images of {smallest} px; blurs need {SMALLEST} or more")
        for name in self.corruptions:
            for severity in self.severities:
                images = [
                    corrupt(image, name, severity, (self.seed, place))
                    for image, place in zip(cropped, places, strict=True)
                ]
                digest = hashlib.sha256()
                for image in images:
                    digest.update(image.numpy().tobytes())
                yield replace(
                    shown,
                    name=f"{shown.name} {name} {severity}",
                    images=pack(images),
                    fingerprint=digest.hexdigest(),
                    origin=None,
                )


def cut(image: Tensor, size: tuple[int, int]) -> Tensor:
    """What the test transform shows of an image; of one that it would enlarge, the middle square as it is.

    Args:
        image: uint8 (3, H, W).
        size: Height and width that the encoder takes.

    Example:
        >>> small, large = torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(3, 300, 400, dtype=torch.uint8)
        >>> cut(small, (224, 224)).shape, cut(large, (224, 224)).shape
        (torch.Size([3, 32, 32]), torch.Size([3, 224, 224]))
    """
    side = min(image.shape[1:])
    if size[0] == size[1] and side < size[0]:
        return center_crop(image, [side, side])  # the test transform follows, and resizes by 256/224 itself
    return resize_crop(image, size)


def relative_drop(clean: Tensor, corrupted: Tensor, seed: int = 0) -> Metric:
    """100 (clean - corrupted) / clean of the mean accuracies, with a jackknife interval over test images.

    Args:
        clean: (N,) float64, 100 or 0.
        corrupted: (N,) float64, in [0, 100].
        seed: Of the groups.

    Example:
        >>> relative_drop(torch.tensor([100.0, 100.0]), torch.tensor([50.0, 100.0])).value
        25.0
    """
    n = len(clean)

    def drop(keep: Tensor) -> float:
        whole = float(clean[keep].mean())
        return 100 * (1 - float(corrupted[keep].mean()) / whole) if whole else 0.0

    groups = jackknife_groups(n, seed)
    left_out = [drop(groups != g) for g in range(int(groups.max()) + 1)] if n > 1 else []
    return jackknife_metric(drop(torch.ones(n, dtype=torch.bool)), left_out, n, (100.0 * (1 - n), 100.0))

"""Segmentation by nearest neighbours: every token takes its classes from the most similar tokens of training images.

Hummingbird (Balazevic et al., NeurIPS 2023, arXiv:2306.01667), with the memory of its public re-implementation
(vpariza/open-hummingbird-eval). Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.dense import common_size, in_threads, maps_of, patch_classes, resized, resized_mask
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result
from ssl_bench.evaluations.pictures import Gallery, overlaid
from ssl_bench.evaluations.solvers.neighbours import normalize, search
from ssl_bench.metrics.segmentation import iou_parts, pixel_counts, segmentation_metrics
from ssl_bench.utils.bounds import Count, Positive, Seed
from ssl_bench.utils.errors import UserError

GATHERED = 2**21  # shares of classes of neighbours that are looked up at once: 8 MiB


class SegmentationKNN(Evaluator):
    """Class of every pixel from the k training tokens that are most similar to the token that covers it.

    The memory holds `memory` tokens of the training images with the share of each class among the pixels of their
    patches, the same number from every image, rare classes first. A token's classes are the mean of those of its
    neighbours, with weights softmax(cosine / temperature), enlarged to the size of the image. Beyond the maps of a
    batch of images, memory x (D + C) numbers are held, whatever the number of images.

    Images and masks are resized to one size first: their own if they share one, otherwise 512 x 512.

    Args:
        memory: Tokens at most. Results depend on it by ten points and more: only equal ones compare.
        k: Neighbours.
        temperature: Of the weights.
        seed: Of the draw of tokens.

    Raises:
        UserError: A number out of range.
    """

    version: ClassVar[int] = 1
    task: ClassVar[str] = "segmentation"
    needs: ClassVar[str] = "masks"
    metric_help: ClassVar[dict[str, str]] = {
        "miou": "mean over classes of intersection over union of all pixels, percent",
        "mean_accuracy": "mean over classes of the share of their pixels that are right, percent",
        "pixel_accuracy": "share of all pixels that are right, percent",
        "iou/CLASS": "intersection over union of one class, percent",
    }
    poolings = ()

    def __init__(self, memory: Count = 102_400, k: Count = 30, temperature: Positive = 0.02, seed: Seed = 0) -> None:
        self.memory, self.k, self.temperature, self.seed = memory, k, temperature, seed
        if memory < 1 or k < 1 or temperature <= 0 or seed < 0:
            raise UserError(
                f"segmentation-knn: memory, k and temperature must be positive and seed at least 0, got {memory}, {k}, "
                f"{temperature} and {seed}"
            )

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Fill the memory from all training images, then look up test.

        Raises:
            UserError: The encoder has no map of tokens.
            RunError: Maps that mean nothing, or an image that can't be read any more.
        """
        assert data.train.targets is not None
        names = data.train.targets.classes
        size = common_size(data.train)
        memory = self.fill(encoder, data.train, size)
        counts = []
        gallery = masks_shown(data.test)
        grid: list[int] = []
        for batch, maps in self.predict(encoder, data.test, size, memory):
            grid = list(maps.shape[2:])
            counts += score(maps, data.test, batch, size, gallery)
        parts = torch.stack(counts)
        chosen: dict[str, object] = {"size": list(size), "grid": grid, "memory": len(memory[0])}
        metrics = segmentation_metrics(parts, names)
        picture = gallery.picture()
        return Result(metrics, "miou", iou_parts(parts).numpy(), chosen, "patches", selected=False, picture=picture)

    def predict(
        self, encoder: Encoder, images: ImageSet, size: tuple[int, int], memory: tuple[Tensor, Tensor]
    ) -> Iterator[tuple[range, Tensor]]:
        """Which images, and the scores of classes (B, C, rows, columns) of their tokens, a batch at a time."""
        tokens, shares = memory
        for batch, maps in maps_of(encoder, images, size):
            queries = normalize(maps.flatten(2).transpose(1, 2).flatten(0, 1))
            found = look_up(*search(tokens, queries, min(self.k, len(tokens))), shares, self.temperature)
            yield batch, found.unflatten(0, (len(batch), *maps.shape[2:])).permute(0, 3, 1, 2)

    def fill(self, encoder: Encoder, images: ImageSet, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The memory: normalised tokens (M, D) and shares of classes (M, C), both float32."""
        assert images.targets is not None
        classes = len(images.targets.classes)
        each = max(1, self.memory // len(images))
        # With more images than the memory has tokens, the images that give one are drawn.
        generator = torch.Generator().manual_seed(self.seed)
        giving = torch.zeros(len(images), dtype=torch.bool)
        giving[torch.randperm(len(images), generator=generator)[: self.memory]] = True
        tokens, shares, filled = torch.empty(0), torch.empty(0), 0
        for batch, maps in maps_of(encoder, images, size):
            if not len(tokens):
                # The places of all, once: parts that are put together at the end would be held twice.
                rows = int(giving.sum()) * min(each, maps.shape[2] * maps.shape[3])
                tokens, shares = torch.empty(rows, maps.shape[1]), torch.empty(rows, classes)
            for i, found in zip(batch, maps, strict=True):
                if giving[i]:
                    mask, grid = resized_mask(images.targets.mask(i), size), (found.shape[1], found.shape[2])
                    of = patch_classes(mask, grid, classes, ignore_as=0)
                    chosen = rare_first(of, each, generator)
                    places = slice(filled, filled + len(chosen))
                    tokens[places], shares[places] = normalize(found.flatten(1).T[chosen]), of[chosen]
                    filled = places.stop
        assert filled == len(tokens)
        return tokens, shares


def rare_first(shares: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Which patches of an image go into the memory: by chance, those of classes that few of its patches show first.

    A patch's score is the sum, over the classes in it, of the number of patches with that class, times a uniform
    number; those of smallest score are taken.

    Args:
        shares: (L, C) float, of the classes in each patch.
        count: How many.
        generator: Of the uniform numbers.

    Returns:
        (min(count, L),) int64.
    """
    there = (shares > 0).float()
    scores = (there @ there.sum(0)) * torch.rand(len(shares), generator=generator)
    return scores.topk(min(count, len(shares)), largest=False).indices


def look_up(similarity: Tensor, neighbours: Tensor, shares: Tensor, temperature: float) -> Tensor:
    """Classes of tokens: the mean of their neighbours' shares, weighted by softmax(similarity / temperature).

    Args:
        similarity: (N, k) float cosines.
        neighbours: (N, k) int64 rows of `shares`.
        shares: (M, C) float.
        temperature: T.

    Returns:
        (N, C) float32.

    Example:
        >>> near, shares = torch.tensor([[0, 1]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> look_up(torch.tensor([[0.9, 0.9]]), near, shares, 0.02)
        tensor([[0.5000, 0.5000]])
    """
    weights = (similarity / temperature).softmax(1)
    step = max(1, GATHERED // (neighbours.shape[1] * shares.shape[1]))
    parts = zip(weights.split(step), neighbours.split(step), strict=True)
    return torch.cat([(w[:, None] @ shares[index])[:, 0] for w, index in parts])


def masks_shown(images: ImageSet) -> Gallery:
    """What `show_masks` adds to."""
    return Gallery(len(images), "image", "true classes", "predicted classes")


def show_masks(gallery: Gallery, images: ImageSet, index: int, truth: Tensor, predicted: Tensor) -> None:
    """An image with its true and its predicted mask, both uint8 or int64 (H, W), where it is one that is shown."""
    if index in gallery:
        image = resized(images.images[index], (truth.shape[0], truth.shape[1]))
        gallery.add(index, image, overlaid(image, truth), overlaid(image, predicted))


def score(
    maps: Tensor, images: ImageSet, batch: range, size: tuple[int, int], gallery: Gallery | None = None
) -> list[Tensor]:
    """`pixel_counts` of some images, from maps of scores (B, C, rows, columns) enlarged to `size`."""
    targets, classes = images.targets, maps.shape[1]
    assert targets is not None

    def one(i: int) -> Tensor:
        enlarged = F.interpolate(maps[i - batch.start, None], size, mode="bilinear")[0]
        predicted, truth = enlarged.argmax(0), resized_mask(targets.mask(i), size)
        if gallery is not None:
            show_masks(gallery, images, i, truth, predicted)
        return pixel_counts(predicted, truth, classes)

    return in_threads(one, batch)

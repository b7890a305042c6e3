"""Linear segmentation on frozen feature maps, in the papers' form: trained on random crops, tested in sliding windows.

DINOv2 (Oquab et al., TMLR 2024, arXiv:2304.07193, section 7.4: batch normalisation and a linear layer on the last map)
and iBOT (Zhou et al., ICLR 2022, arXiv:2111.07832, section 4.2.2: a linear layer on four maps), both after
MMSegmentation's recipe for ADE20K.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar

import numpy as np
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.data.datasets import ImageSet
from ssl_bench.data.targets import IGNORE
from ssl_bench.evaluations.dense import in_threads, resized, resized_mask, shuffled_batches
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result
from ssl_bench.evaluations.frozen.segmentation_knn import SegmentationKNN, masks_shown, show_masks
from ssl_bench.metrics.segmentation import iou_parts, pixel_counts, segmentation_metrics
from ssl_bench.nn.batch_norm import BatchNorm2d
from ssl_bench.utils.bounds import Count, Few, Natural, NonNegative, Pixels, Positive, Seed
from ssl_bench.utils.distributed import all_mean, average_gradients, part
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.utils.progress import progress

LONGEST = 4  # the long side of a resized image is at most so many crops: 2048 for 512
MOST_OF_ONE = 0.75  # of a crop that one class may fill; otherwise another is drawn, ten times at most
WARMUP_FROM = 1e-6  # of the learning rate


class SegmentationLinear(Evaluator):
    """A linear layer from tokens to classes, its scores enlarged to the pixels before the loss.

    AdamW with betas (0.9, 0.999); linear warm-up, then the rate falls to 0 in a straight line. Images are resized so
    that they fit `crop` x 4 `crop`, times a factor from `scale`, cropped, flipped and distorted in colour. Test images
    are resized likewise without the factor, and scores of windows are averaged; they are compared with the masks at the
    masks' own size.

    Args:
        blocks: After which blocks, counted from 1, maps are taken and concatenated; the tokens that come out if empty.
        norm: Batch normalisation before the layer.
        lr: Learning rate.
        weight_decay: Of AdamW.
        steps: Batches.
        warmup: Of them with a rising rate.
        batch_size: Crops.
        crop: Pixels of the side of crops and windows.
        stride: Pixels between two windows.
        scale: Smallest and largest factor.
        seed: Of everything that is drawn.

    Raises:
        UserError: A number out of range.
    """

    version: ClassVar[int] = 1
    task: ClassVar[str] = "segmentation"
    joint: ClassVar[bool] = True
    needs: ClassVar[str] = "masks"
    metric_help: ClassVar[dict[str, str]] = SegmentationKNN.metric_help
    poolings = ()

    def __init__(
        self,
        blocks: tuple[Few, ...] = (),
        norm: bool = True,
        lr: Positive = 1e-3,
        weight_decay: NonNegative = 1e-4,
        steps: Count = 40_000,
        warmup: Natural = 1500,
        batch_size: Count = 16,
        crop: Pixels = 512,
        stride: Pixels = 341,
        scale: tuple[Positive, Positive] = (0.5, 2.0),
        seed: Seed = 0,
    ) -> None:
        self.blocks, self.norm, self.lr, self.weight_decay = tuple(blocks), norm, lr, weight_decay
        self.steps, self.warmup, self.batch_size, self.crop, self.stride = steps, warmup, batch_size, crop, stride
        self.scale, self.seed = (scale[0], scale[1]), seed
        if min(lr, steps, batch_size, crop, stride, *self.scale) <= 0 or min(weight_decay, warmup, seed) < 0:
            raise UserError(
                "segmentation-linear: lr, steps, batch_size, crop, stride and scale must be positive, weight_decay, "
                "warmup and seed at least 0"
            )

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Train on all training images, then score test after the last step.

        Raises:
            UserError: The encoder has no map of tokens of this crop, or not these blocks.
            RunError: The head diverged, or an image can't be read any more.
        """
        targets = data.test.targets
        assert data.train.targets is not None and targets is not None
        names = data.train.targets.classes
        head = self._train(encoder, data.train, len(names))
        counts, gallery = [], masks_shown(data.test)
        for i in progress(range(len(data.test)), f"windows of {data.test.name}", len(data.test)):
            mask = targets.mask(i)
            scores = self.slide(data.test.images[i], partial(self._scores, encoder, head))
            predicted = F.interpolate(scores[None], mask.shape, mode="bilinear")[0].argmax(0)
            counts.append(pixel_counts(predicted, mask, len(names)))
            show_masks(gallery, data.test, i, mask, predicted)
        parts = torch.stack(counts)
        chosen: dict[str, object] = {"passes": self.steps * self.batch_size / len(data.train)}
        metrics, picture = segmentation_metrics(parts, names), gallery.picture()
        return Result(metrics, "miou", iou_parts(parts).numpy(), chosen, "patches", selected=False, picture=picture)

    def _train(self, encoder: Encoder, images: ImageSet, classes: int) -> nn.Sequential:
        """The head after the last step, in eval mode."""
        head: nn.Sequential | None = None
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for step, (crops, masks) in enumerate(progress(self.batches(images), "training the head", self.steps)):
            maps, masks = encoder.map_of(crops, self.blocks).to(device), masks.to(device)
            if head is None:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self.seed)
                    layer = nn.Conv2d(maps.shape[1], classes, 1)
                    nn.init.normal_(layer.weight, std=0.01)
                    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
                head = nn.Sequential(BatchNorm2d(maps.shape[1]) if self.norm else nn.Identity(), layer).to(device)
                optimizer = torch.optim.AdamW(head.parameters(), self.lr, weight_decay=self.weight_decay)
            for group in optimizer.param_groups:
                group["lr"] = self.lr * rate(step, self.steps, self.warmup)
            optimizer.zero_grad()
            pixel_loss(head(maps), masks).backward()
            average_gradients(head.parameters())
            optimizer.step()
        assert head is not None
        if not all(torch.isfinite(p).all() for p in head.parameters()):
            raise RunError(f"segmentation-linear: the head diverged; lr {self.lr} needs a smaller value")
        return head.eval()

    def batches(self, images: ImageSet) -> Iterator[tuple[Tensor, Tensor]]:
        """Crops uint8 (B, 3, crop, crop) and their masks uint8 (B, crop, crop), this process's of `steps` batches."""
        random = np.random.default_rng(self.seed)
        for step, at in enumerate(shuffled_batches(len(images), self.batch_size, self.steps, random)):
            cut = partial(self._cut, images, at, step)
            crops, masks = zip(*in_threads(cut, part(self.batch_size)), strict=True)
            yield torch.stack(crops), torch.stack(masks)

    def _cut(self, images: ImageSet, at: list[int], step: int, place: int) -> tuple[Tensor, Tensor]:
        """A random crop of image `at[place]` and of its mask, padded with black pixels without class if too small."""
        assert images.targets is not None
        random = np.random.default_rng((self.seed, step, place))
        image, mask = images.images[at[place]], images.targets.mask(at[place])
        size = fitted((image.shape[1], image.shape[2]), self.crop, random.uniform(*self.scale))
        image, mask = resized(image, size), resized_mask(mask, size)
        for _ in range(10):
            top, left = (int(random.integers(0, max(0, side - self.crop) + 1)) for side in size)
            part = mask[top : top + self.crop, left : left + self.crop]
            seen = torch.bincount(part[part != IGNORE].long().flatten())
            if (seen > 0).sum() > 1 and seen.max() / seen.sum() < MOST_OF_ONE:
                break
        image = image[:, top : top + self.crop, left : left + self.crop]
        if random.random() < 0.5:
            image, part = image.flip(-1), part.flip(-1)
        missing = [0, self.crop - part.shape[1], 0, self.crop - part.shape[0]]
        return F.pad(distorted(image, random), missing), F.pad(part, missing, value=IGNORE)

    @torch.no_grad()
    def _scores(self, encoder: Encoder, head: nn.Sequential, window: Tensor) -> Tensor:
        scores: Tensor = head(encoder.map_of(window, self.blocks).to(next(head.parameters()).device))
        return scores.cpu()

    def slide(self, image: Tensor, scores_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Scores (C, H, W) of a resized image: the mean over the windows that show a pixel.

        Args:
            image: uint8 (3, H', W').
            scores_of: Windows uint8 (1, 3, crop, crop) to scores (1, C, h, w).
        """
        image = resized(image, fitted((image.shape[1], image.shape[2]), self.crop, 1.0))
        height, width = image.shape[1:]
        image = F.pad(image, [0, max(0, self.crop - width), 0, max(0, self.crop - height)])
        total: Tensor | None = None
        count = torch.zeros(image.shape[1:])
        for top, left in windows((image.shape[1], image.shape[2]), self.crop, self.stride):
            place = (..., slice(top, top + self.crop), slice(left, left + self.crop))
            scores = F.interpolate(scores_of(image[place][None]), (self.crop, self.crop), mode="bilinear")[0]
            total = torch.zeros(len(scores), *image.shape[1:]) if total is None else total
            total[place] += scores
            count[place] += 1
        assert total is not None
        return (total / count)[:, :height, :width]


def pixel_loss(scores: Tensor, masks: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels of a batch that have a class.

    The mean of it over processes is that of their joint batch.

    Args:
        scores: (B, C, h, w) float, enlarged to the masks.
        masks: (B, H, W) uint8.
    """
    scores, known = F.interpolate(scores, masks.shape[-2:], mode="bilinear"), masks != IGNORE
    loss = F.cross_entropy(scores, torch.where(known, masks, 0).long(), reduction="none")[known].sum()
    return loss / all_mean(known.sum()).clamp(min=1)


def distorted(image: Tensor, random: np.random.Generator) -> Tensor:
    """uint8 (3, H, W) with other brightness, contrast, saturation and hue, each by an even chance (MMSegmentation)."""
    found = image.float() / 255
    turns = random.random(5) < 0.5
    contrast = random.uniform(0.5, 1.5) if turns[0] else 1.0
    if turns[1]:
        found = (found + random.uniform(-32, 32) / 255).clamp(0, 1)
    found = (found * (contrast if turns[2] else 1.0)).clamp(0, 1)  # before the colours, or after them
    if turns[3]:
        found = tv.adjust_saturation(found, random.uniform(0.5, 1.5))
    if turns[4]:
        found = tv.adjust_hue(found, random.uniform(-0.1, 0.1))
    found = (found * (1.0 if turns[2] else contrast)).clamp(0, 1)
    return (found * 255).round().to(torch.uint8)


def rate(step: int, steps: int, warmup: int) -> float:
    """Share of the learning rate: linear warm-up from 1e-6, times a straight line from 1 to 0 over all steps.

    Example:
        >>> [round(rate(step, 100, 10), 3) for step in (0, 5, 10, 50, 99)]
        [0.0, 0.475, 0.9, 0.5, 0.01]
    """
    rising = 1 - (1 - step / warmup) * (1 - WARMUP_FROM) if step < warmup else 1.0
    return rising * (1 - step / steps)


def fitted(size: tuple[int, int], crop: int, factor: float) -> tuple[int, int]:
    """Height and width that fit into `crop` x 4 `crop`, times a factor, in the proportions of an image.

    Example:
        >>> fitted((375, 500), 512, 1.0), fitted((100, 1000), 512, 2.0)
        ((512, 683), (410, 4096))
    """
    ratio = factor * min(crop / min(size), LONGEST * crop / max(size))
    return max(1, int(size[0] * ratio + 0.5)), max(1, int(size[1] * ratio + 0.5))


def windows(size: tuple[int, int], crop: int, stride: int) -> list[tuple[int, int]]:
    """Upper left corners of the windows that cover an image; the last of a row or column is moved inward to fit.

    Example:
        >>> windows((512, 683), 512, 341)
        [(0, 0), (0, 171)]
    """
    rows, columns = (
        [min(i * stride, side - crop) for i in range(1 + math.ceil((side - crop) / stride))] for side in size
    )
    return [(row, column) for row in rows for column in columns]

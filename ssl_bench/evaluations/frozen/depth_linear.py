"""Depth of every pixel by a linear layer on frozen tokens: DINOv2's (Oquab et al., TMLR 2024, arXiv:2304.07193,
section 7.4), with the bins and the losses of its released head.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.dense import in_threads, resized, shuffled_batches
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result
from ssl_bench.evaluations.pictures import Gallery, shaded
from ssl_bench.metrics.depth import depth_errors
from ssl_bench.metrics.intervals import LARGEST, mean_metric
from ssl_bench.nn.schedules import warmup_cosine
from ssl_bench.utils.bounds import Count, Natural, NonNegative, Pixels, Positive, Seed
from ssl_bench.utils.distributed import average_gradients, gather, gather_with_gradient, part
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.utils.progress import progress

ENLARGED = 4  # how much finer than the tokens the features are on which the layer works
LEAST = 1e-3  # metres, the first bin
EPS = 1e-3  # metres, added before logarithms are taken
SILENT = 100  # first calls of `sig_loss`, which look at the mean alone


class DepthLinear(Evaluator):
    """Errors of the depth that a linear layer gives from tokens, the class token (or their mean) beside each.

    The layer has a score for each of `bins` depths; the prediction is their mean. AdamW, warm-up and cosine, on random
    crops, flipped by an even chance. Test images are looked at whole, also mirrored, and predictions averaged; they are
    compared in the pixels whose depth is known and at most `max_depth`.

    Args:
        lr: Learning rate.
        weight_decay: Of AdamW.
        clip_grad: Largest global gradient norm.
        steps: Batches.
        warmup: Of them with a rising rate.
        batch_size: Crops.
        crop: Pixels of the sides of crops, height and width; smaller images are taken whole.
        bins: Depths.
        max_depth: Metres.
        border: Rows and columns that aren't scored, as shares of the sides: top, bottom, left, right.
        seed: Of everything that is drawn.

    Raises:
        UserError: A number out of range.
    """

    version: ClassVar[int] = 1
    task: ClassVar[str] = "depth"
    joint: ClassVar[bool] = True
    needs: ClassVar[str] = "depths"
    metric_help: ClassVar[dict[str, str]] = {
        "a1": "share of pixels less than 1.25 times too near or far, mean over images, percent; a2, a3: 1.25^2, 1.25^3",
        "rmse": "root of the mean squared error of an image, mean over images, metres",
        "abs_rel": "error by depth, mean over pixels, then images, percent; sq_rel its square times the depth",
        "rmse_log": "root mean squared error of logarithms, times 100; log10 the mean absolute one, silog the spread",
    }
    poolings = ()

    def __init__(
        self,
        lr: Positive = 5e-3,
        weight_decay: NonNegative = 0.01,
        clip_grad: Positive = 35.0,
        steps: Count = 38_400,
        warmup: Natural = 12_800,
        batch_size: Count = 16,
        crop: tuple[Pixels, Pixels] = (416, 544),
        bins: Count = 256,
        max_depth: Positive = 10.0,
        border: tuple[NonNegative, NonNegative, NonNegative, NonNegative] = (0.09375, 0.01875, 0.0640625, 0.0609375),
        seed: Seed = 0,
    ) -> None:
        self.lr, self.weight_decay, self.clip_grad, self.steps = lr, weight_decay, clip_grad, steps
        self.warmup, self.batch_size, self.crop, self.bins = warmup, batch_size, (crop[0], crop[1]), bins
        self.max_depth, self.border, self.seed = max_depth, (border[0], border[1], border[2], border[3]), seed
        if warmup > steps or border[0] + border[1] >= 1 or border[2] + border[3] >= 1:
            raise UserError(
                f"depth-linear: warmup {warmup} must be at most steps {steps}, and border {border} leave a middle"
            )

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Train on all training images, then score test after the last step.

        Raises:
            UserError: The encoder has no map of tokens of this size.
            RunError: The training diverged, or no depth is known.
        """
        targets = data.test.targets
        assert targets is not None
        head = self._train(encoder, data.train)
        found = []
        gallery = Gallery(len(data.test), "image", "true depths", "predicted depths")
        for i in progress(range(len(data.test)), f"depths of {data.test.name}", len(data.test)):
            whole, image = targets.depth(i), data.test.images[i]
            truth = self._inside(whole)
            seen = [self._depths(encoder, turned[None], head)[0].cpu() for turned in (image, image.flip(-1))]
            depth = self._enlarged((seen[0] + seen[1].flip(-1))[None] / 2, (image.shape[1], image.shape[2]))[0]
            errors = depth_errors(self._inside(depth), truth, self.max_depth)
            if errors:
                found.append(errors)
            if i in gallery:
                gallery.add(i, image, shaded(whole, self.max_depth), shaded(depth, self.max_depth))
        if not found:
            raise RunError(f"depth-linear: no depth of {data.test.name} {data.test.split} is known")
        values = {name: torch.tensor([errors[name] for errors in found]) for name in found[0]}
        chosen: dict[str, object] = {
            "passes": self.steps * self.batch_size / len(data.train),
            "images_without_depth": len(data.test) - len(found),
        }
        shares = ("a1", "a2", "a3")  # errors may be larger than 100
        metrics = {name: mean_metric(each, 100.0 if name in shares else LARGEST) for name, each in values.items()}
        correct, picture = values["a1"].numpy() / 100, gallery.picture()
        return Result(metrics, "a1", correct, chosen, "patches", selected=False, picture=picture)

    def _inside(self, depth: Tensor) -> Tensor:
        top, bottom, left, right = self.border
        height, width = depth.shape
        return depth[
            round(top * height) : height - round(bottom * height), round(left * width) : width - round(right * width)
        ]

    def _train(self, encoder: Encoder, images: ImageSet) -> nn.Conv2d:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        head: nn.Conv2d | None = None
        for step, (crops, depths) in enumerate(progress(self._batches(images), "depth head", self.steps)):
            maps = encoder.map_of(crops, cls=True).to(device)
            if head is None:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self.seed)
                    head = nn.Conv2d(maps.shape[1], self.bins, 1)
                    nn.init.normal_(head.weight, std=0.01)
                    nn.init.zeros_(head.bias)  # type: ignore[arg-type]
                optimizer = torch.optim.AdamW(head.to(device).parameters(), self.lr, weight_decay=self.weight_decay)
            for group in optimizer.param_groups:
                group["lr"] = warmup_cosine(step, self.lr, self.warmup, self.steps)
            predicted = self._enlarged(self._binned(maps, head), (depths.shape[1], depths.shape[2]))[:, None]
            predicted, truth = gather_with_gradient(predicted), gather(depths[:, None].to(device))  # compares images
            loss = depth_loss(predicted, truth, self.max_depth, step < SILENT)
            if not torch.isfinite(loss):
                raise RunError(f"depth-linear: the training diverged; lr {self.lr} needs a smaller value")
            optimizer.zero_grad()
            loss.backward()
            average_gradients(head.parameters())
            nn.utils.clip_grad_norm_(head.parameters(), self.clip_grad)
            optimizer.step()
        assert head is not None
        return head.eval()

    def _batches(self, images: ImageSet) -> Iterator[tuple[Tensor, Tensor]]:
        """Crops uint8 (B, 3, H, W) and their depths (B, H, W) float32, this process's of `steps` batches."""
        random = np.random.default_rng(self.seed)
        for step, at in enumerate(shuffled_batches(len(images), self.batch_size, self.steps, random)):
            crops, depths = zip(*in_threads(partial(self._cut, images, at, step), part(len(at))), strict=True)
            yield torch.stack(crops), torch.stack(depths)

    def _cut(self, images: ImageSet, at: list[int], step: int, place: int) -> tuple[Tensor, Tensor]:
        assert images.targets is not None
        random = np.random.default_rng((self.seed, step, place))
        image, depth = images.images[at[place]], images.targets.depth(at[place])
        if image.shape[1:] != depth.shape:
            raise RunError(f"depth-linear: image {at[place]} of {images.name} has another size than its depths")
        whole = images.sides is not None and depth.shape[0] <= self.crop[0] and depth.shape[1] <= self.crop[1]
        if not whole:
            grow = max(1.0, *(side / own for side, own in zip(self.crop, depth.shape, strict=True)))
            size = (max(self.crop[0], round(grow * depth.shape[0])), max(self.crop[1], round(grow * depth.shape[1])))
            image, depth = resized(image, size), F.interpolate(depth[None, None], size, mode="nearest-exact")[0, 0]
            top, left = (int(random.integers(0, side - own + 1)) for side, own in zip(size, self.crop, strict=True))
            place_ = (slice(top, top + self.crop[0]), slice(left, left + self.crop[1]))
            image, depth = image[:, place_[0], place_[1]], depth[place_]
        return (image.flip(-1), depth.flip(-1)) if random.random() < 0.5 else (image, depth)

    @torch.no_grad()
    def _depths(self, encoder: Encoder, images: Tensor, head: nn.Conv2d) -> Tensor:
        return self._binned(encoder.map_of(images, cls=True).to(head.weight.device), head)

    def _binned(self, maps: Tensor, head: nn.Conv2d) -> Tensor:
        """(B, D, h, w) features to depths (B, 4 h, 4 w) float32."""
        fine = F.interpolate(maps, scale_factor=ENLARGED, mode="bilinear")
        return expected_depth(head(fine), LEAST, self.max_depth)

    def _enlarged(self, depths: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(depths[:, None], size, mode="bilinear")[:, 0]


def expected_depth(logits: Tensor, least: float, most: float) -> Tensor:
    """The mean depth under linearly normalised scores: p = (relu(score) + 0.1) / sum.

    Args:
        logits: (B, K, H, W) float, of K depths spaced evenly.
        least: Metres, the first.
        most: Metres, the last.

    Returns:
        (B, H, W) metres.

    Example:
        >>> round(expected_depth(torch.tensor([1.0, -2.0, 0.5, 3.0]).view(1, 4, 1, 1), 0.001, 10.0).item(), 6)
        7.211163
    """
    weights = logits.relu() + 0.1
    depths = torch.linspace(least, most, logits.shape[1], device=logits.device)
    return torch.einsum("bkhw,k->bhw", weights / weights.sum(1, keepdim=True), depths)


def depth_loss(predicted: Tensor, truth: Tensor, max_depth: float, silent: bool = False) -> Tensor:
    """What the layer learns from: `sig_loss` and half of `gradient_loss`."""
    return sig_loss(predicted, truth, max_depth, silent) + 0.5 * gradient_loss(predicted, truth, max_depth)


def sig_loss(predicted: Tensor, truth: Tensor, max_depth: float, silent: bool = False) -> Tensor:
    """Root of the variance of the log error and of 0.15 times its squared mean, over the pixels whose depth counts.

    Args:
        predicted: Metres, any shape.
        truth: Metres, the same shape; 0 is unknown.
        max_depth: Metres; what is farther doesn't count.
        silent: Leave the variance out, as the authors' code does in its first 100 calls.
    """
    known = (truth > 0) & (truth <= max_depth)
    error = (predicted[known] + EPS).log() - (truth[known] + EPS).log()
    if len(error) < 2:
        return predicted.sum() * 0
    mean = 0.15 * error.mean() ** 2
    # The root has no derivative at 0, where a perfect prediction is.
    return ((mean if silent else error.var() + mean) + 1e-20).sqrt()


def gradient_loss(predicted: Tensor, truth: Tensor, max_depth: float) -> Tensor:
    """Differences of the log error between places two apart along the first two axes, at strides 1, 2, 4 and 6.

    The authors' head calls it with (B, 1, H, W), so that it compares an image with the next but one of the batch and
    not a pixel with its neighbour; so do we.
    """
    total = predicted.sum() * 0
    for stride in (1, 2, 4, 6):
        a, b = predicted[::stride, ::stride], truth[::stride, ::stride]
        known = (b > 0) & (b <= max_depth)
        error = torch.where(known, (a + EPS).log() - (b + EPS).log(), 0.0)
        down = ((error[:-2] - error[2:]).abs() * (known[:-2] & known[2:])).sum()
        across = ((error[:, :-2] - error[:, 2:]).abs() * (known[:, :-2] & known[:, 2:])).sum()
        total = total + (down + across) / known.sum().clamp(min=1)
    return total

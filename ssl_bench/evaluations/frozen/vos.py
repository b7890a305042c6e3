"""Video object segmentation by label propagation: the masks of the first frame, carried on by similar tokens.

The protocol of DINO (Caron et al., ICCV 2021, arXiv:2104.14294, table 5; authors' `eval_video_segmentation.py`) on
DAVIS-2017, after Jabri et al. (NeurIPS 2020, arXiv:2006.14613). Nothing is trained.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.dense import maps_of, resized, resized_mask
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result
from ssl_bench.evaluations.pictures import Gallery, overlaid
from ssl_bench.evaluations.solvers.neighbours import normalize
from ssl_bench.metrics.intervals import ratio_metric
from ssl_bench.metrics.objects import boundary, region
from ssl_bench.utils.bounds import Count, Natural, Pixels, Positive
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.utils.progress import progress

LATER = (0.25, 0.5, 0.9)  # of a clip, where frames are shown
STEP = 64  # pixels, of which the long side of a resized frame is a multiple


class VOS(Evaluator):
    """Region and boundary agreement (J and F) of propagated masks, mean over frames, then over objects.

    The tokens of a frame take the labels of the tokens most similar to them in the first frame and in the last `frames`
    ones, whose labels are those that were propagated, soft. The tracked objects are those of the first frame, which
    isn't scored, nor is the last. Training images aren't looked at.

    Args:
        frames: Frames before the present one that give labels, besides the first.
        radius: Tokens by which a token may move, along each axis; 0 does not limit it.
        topk: Source tokens of each token, over all frames together.
        temperature: Of the weights exp(cosine / temperature).
        short_side: Pixels to which larger frames are resized, the long side to a multiple of 64 below; smaller ones
            stay as they are.

    Raises:
        UserError: A number out of range.
    """

    version: ClassVar[int] = 1
    task: ClassVar[str] = "video"
    needs: ClassVar[str] = "clips"
    metric_help: ClassVar[dict[str, str]] = {
        "jf": "mean of J and F, percent",
        "j": "intersection over union of an object, mean over its frames, then over objects, percent",
        "f": "the same of the harmonic mean of precision and recall of its boundary, percent",
        "j_recall": "share of frames with J above a half, mean over objects, percent",
        "f_recall": "share of frames with F above a half, mean over objects, percent",
    }
    poolings = ()

    def __init__(
        self,
        frames: Natural = 7,
        radius: Natural = 12,
        topk: Count = 5,
        temperature: Positive = 0.1,
        short_side: Pixels = 480,
    ) -> None:
        self.frames, self.radius, self.topk = frames, radius, topk
        self.temperature, self.short_side = temperature, short_side
        if frames < 0 or radius < 0 or topk < 1 or temperature <= 0 or short_side < 1:
            raise UserError(
                "vos: topk, temperature and short_side must be positive, frames and radius at least 0, got "
                f"{topk}, {temperature}, {short_side}, {frames} and {radius}"
            )

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Carry the first masks of every test clip on.

        Raises:
            UserError: The encoder has no map of tokens.
            RunError: Maps that mean nothing, no object in any clip, frames that were left out, or one that can't be
                read any more.
        """
        if data.test.skipped:  # the first of a clip has the objects, and the others follow each other in time
            raise RunError(f"vos: {data.test.skipped} frames of {data.test.name} are missing: clips have gaps")
        targets = data.test.targets
        assert targets is not None and targets.clips is not None
        clips = [(targets.clips == clip).nonzero().squeeze(1) for clip in targets.clips.unique()]
        later = [f"{what} {share:.0%}" for share in LATER for what in ("true objects at", "followed to")]
        gallery = Gallery(len(clips), "first frame", *later)
        found = [
            self._clip(encoder, data.test.subset(at, data.test.split), gallery, number)
            for number, at in enumerate(progress(clips, f"clips of {data.test.name}", len(clips)))
        ]
        totals = np.array([each.sum(0) if len(each) else np.zeros(4) for each in found])  # (clips, 4)
        objects = np.array([len(each) for each in found])
        if not objects.sum():
            raise RunError(f"vos: no clip of {data.test.name} shows an object in its first frame")

        def parts(values: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
            return np.stack([values, objects], axis=1)[:, None]

        both = parts((totals[:, 0] + totals[:, 1]) / 2)
        metrics = {"jf": ratio_metric(both)}
        names = ("j", "f", "j_recall", "f_recall")
        metrics |= {name: ratio_metric(parts(totals[:, i])) for i, name in enumerate(names)}
        chosen: dict[str, object] = {"clips": len(clips), "objects": int(objects.sum())}
        return Result(metrics, "jf", both, chosen, "patches", selected=False, picture=gallery.picture())

    def _clip(
        self, encoder: Encoder, clip: ImageSet, gallery: Gallery, number: int
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """J, F and the shares of frames above a half of each object of one clip: (objects, 4)."""
        assert clip.targets is not None
        first = clip.targets.instance(0)
        numbers = [int(number) for number in first.unique() if number]
        scores = []
        shown = [int(share * len(clip)) for share in LATER]
        for t, labels in enumerate(self.propagate(encoder, clip)):
            for seen in [None] * (not t) + [labels] * shown.count(t) if number in gallery else []:
                _show(gallery, number, clip, t, seen)
            if 0 < t < len(clip) - 1:
                truth = clip.targets.instance(t).numpy()
                followed = resized_mask(labels, truth.shape).numpy()
                of = [(followed == number, truth == number) for number in numbers]
                scores.append([(region(*masks), boundary(*masks)) for masks in of])
        if not scores or not numbers:
            return np.zeros((0, 4))
        each = np.array(scores)  # (frames, objects, 2)
        return np.concatenate([each.mean(0), (each > 0.5).mean(0)], axis=1)

    def propagate(self, encoder: Encoder, clip: ImageSet) -> Iterator[Tensor]:
        """The numbers of the objects, uint8 (H, W) at the size of the resized frame, in each frame of one clip."""
        assert clip.targets is not None
        first = clip.targets.instance(0)
        size = frame_size((first.shape[0], first.shape[1]), self.short_side)
        context: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.frames)
        start: list[tuple[Tensor, Tensor]] = []
        near: Tensor | None = None
        for _, maps in maps_of(encoder, clip, size):
            grid = (maps.shape[2], maps.shape[3])
            for found in maps:
                tokens = normalize(found.flatten(1).T)
                if not start:
                    small = resized_mask(first, grid).flatten().long()
                    labels = F.one_hot(small, int(first.max()) + 1).T.float()
                    start.append((tokens, labels))
                    near = neighbourhood(grid, self.radius) if self.radius else None
                    yield resized_mask(first, size)
                    continue
                sources = [*start, *context]
                labels = propagated(
                    torch.stack([source for source, _ in sources]),
                    tokens,
                    torch.stack([known for _, known in sources]),
                    near,
                    self.topk,
                    self.temperature,
                )
                context.append((tokens, labels))
                enlarged = F.interpolate(labels.unflatten(1, grid)[None], size, mode="bilinear")[0]
                yield stretched(enlarged).argmax(0).to(torch.uint8)


def _show(gallery: Gallery, number: int, clip: ImageSet, t: int, labels: Tensor | None) -> None:
    """A frame with its true objects, and with those that were followed to it: `labels`, as `propagate` gives them."""
    assert clip.targets is not None
    truth = clip.targets.instance(t)
    image = resized(clip.images[t], (truth.shape[0], truth.shape[1]))
    found = [] if labels is None else [resized_mask(labels, (truth.shape[0], truth.shape[1]))]
    gallery.add(number, *(overlaid(image, mask) for mask in (truth, *found)))


def frame_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Height and width to which a frame is resized.

    Example:
        >>> frame_size((480, 854), 480), frame_size((64, 64), 480)
        ((480, 832), (64, 64))
    """
    short, long = min(size), max(size)
    if short < short_side:
        return size
    other = max(STEP, int(short_side * long / short / STEP) * STEP)
    return (short_side, other) if size[0] <= size[1] else (other, short_side)


def neighbourhood(grid: tuple[int, int], radius: int) -> Tensor:
    """Which tokens (columns) lie within a square of `radius` tokens around each (rows): (L, L) bool."""
    places = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))
    return (places[:, None] - places[None]).abs().amax(2) <= radius


def propagated(
    sources: Tensor, target: Tensor, labels: Tensor, near: Tensor | None, topk: int, temperature: float
) -> Tensor:
    """Labels of the tokens of a frame, from those of frames before.

    Args:
        sources: (n, L, D) float32, of length 1: tokens of n frames.
        target: (L, D) float32, of length 1.
        labels: (n, C, L) float32, of the sources.
        near: As of `neighbourhood`; None for no limit.
        topk: Largest weights that count for each token, over all frames; equal ones all do.
        temperature: T of exp(cosine / T).

    Returns:
        (C, L) float32.
    """
    weights = ((sources @ target.T) / temperature).exp()  # (n, source, target)
    if near is not None:
        weights *= near.T
    weights = weights.flatten(0, 1)
    least = weights.topk(min(topk, len(weights)), dim=0).values[-1]
    weights = torch.where(weights < least, 0.0, weights)
    return labels.transpose(0, 1).flatten(1) @ (weights / weights.sum(0))


def stretched(labels: Tensor) -> Tensor:
    """Each channel of (C, H, W) brought to [0, 1]; those without any label, or with the same everywhere, are 0.

    Example:
        >>> stretched(torch.tensor([[[0.2, 0.6]], [[0.4, 0.4]]])).tolist()
        [[[0.0, 1.0]], [[0.0, 0.0]]]
    """
    low, high = labels.amin((1, 2), keepdim=True), labels.amax((1, 2), keepdim=True)
    return torch.where(high > low, (labels - low) / (high - low).clamp(min=1e-30), 0.0)

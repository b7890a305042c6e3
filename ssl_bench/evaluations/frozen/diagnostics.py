"""Diagnostics that need no label: how many directions the features use, how they fill the sphere, how stable they are.

RankMe (Garrido et al., ICML 2023, arXiv:2210.02885), effective rank (Roy and Vetterli, EUSIPCO 2007), alignment and
uniformity (Wang and Isola, ICML 2020, arXiv:2005.10242).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result
from ssl_bench.evaluations.solvers.neighbours import normalize
from ssl_bench.metrics.intervals import jackknife_groups, jackknife_metric
from ssl_bench.metrics.metric import Metric
from ssl_bench.training.health import collapse
from ssl_bench.utils.bounds import Area, Natural, Seed
from ssl_bench.utils.errors import UserError
from ssl_bench.views import VERSION
from ssl_bench.views.evaluation import resize_crop
from ssl_bench.views.make import make_views
from ssl_bench.views.view import View

EPSILON = 1e-7  # RankMe, equation 1
T = 2.0  # of the uniformity, section 4.1.2 of the paper
VIEW_BATCH = 256  # images whose views are cut at once


class Diagnostics(Evaluator):
    """RankMe, effective rank, feature spread, uniformity and alignment of the test features. No label is used.

    Nothing is chosen: the headline is RankMe of the first pooling on offer, and every pooling's numbers are reported.
    Alignment needs two views of an image: they are two random crops with flips of `images` test images, as large as the
    shorter side of the image, without any change of colour, from a fixed seed; the test transform follows. An
    encoder whose features are equal for all images stops with an error; one that uses hardly any direction, or whose
    features hardly differ, is named in `Result.chosen["collapsed"]`.

    Args:
        images: Test images for the alignment, the first ones of a random order; 0 leaves it out.
        scale: Share of the image area of the crops.
        poolings: Features to report.
        seed: Seed of the views and of the jackknife's groups.

    Raises:
        UserError: A number out of range.
    """

    version: ClassVar[int] = 1
    engines: ClassVar[tuple[str, ...]] = ("features", "views")
    needs: ClassVar[str] = ""
    metric_help: ClassVar[dict[str, str]] = {
        "rankme": "exp of the entropy of the singular values of the features, directions: 1 to their number",
        "effective_rank": "the same after the mean is subtracted",
        "feature_std": "mean standard deviation of L2-normalised features times sqrt(D): 0 equal, 1 fill the sphere",
        "uniformity": "log mean exp(-2 |x - y|^2) over pairs of L2-normalised features: 0 equal, -4 far apart",
        "alignment": "mean |x - y|^2 over two views of an image, L2-normalised: 0 is invariant, 2 unrelated",
        "POOLING/...": "the same with that pooling",
    }

    def __init__(
        self,
        images: Natural = 1000,
        scale: tuple[Area, Area] = (0.4, 1.0),
        poolings: tuple[str, ...] = ("cls", "mean"),
        seed: Seed = 0,
    ) -> None:
        self.images, self.scale, self.poolings, self.seed = images, scale, tuple(poolings), seed
        if images < 0 or seed < 0:
            raise UserError(f"diagnostics: images and seed must not be negative, got {images} and {seed}")
        View(1, scale=self.scale)  # refuses a wrong range

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Measure the test features.

        Raises:
            UserError: The encoder has none of the poolings.
            RunError: Features that mean nothing.
        """
        test = self.features(encoder, data.test)
        views = [self.features(encoder, view) for view in self._views(data.test)]
        metrics: dict[str, Metric] = {}
        collapsed: dict[str, list[str]] = {}
        for name, features in test.items():
            found = spectrum(features, self.seed) | {"uniformity": uniformity(normalize(features), self.seed)}
            if views:
                found["alignment"] = alignment(normalize(views[0][name]), normalize(views[1][name]), self.seed)
            metrics |= {f"{name}/{key}": value for key, value in found.items()}
            rank, spread = found["effective_rank"].value, found["feature_std"].value
            collapsed[name] = collapse(rank, spread, features.shape[1], len(features))
        pooling = next(iter(test))
        own = {key.partition("/")[2]: value for key, value in metrics.items() if key.startswith(f"{pooling}/")}
        chosen: dict[str, object] = {
            "pooling": pooling,
            "dimensions": {name: features.shape[1] for name, features in test.items()},
            "collapsed": {name: reasons for name, reasons in collapsed.items() if reasons},
        }
        return Result(own | metrics, "rankme", np.zeros(0, dtype=np.bool_), chosen, pooling)

    def _views(self, images: ImageSet) -> list[ImageSet]:
        """Two sets of random crops, or none."""
        count = min(self.images, len(images))
        if not count:
            return []
        rows = torch.from_numpy(np.random.default_rng(self.seed).permutation(len(images))[:count])
        shown = images.subset(rows, images.split)
        first = shown.images[0]
        side = min(first.shape[1:])
        recipe = [View(side, scale=self.scale, count=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))]
        generator = torch.Generator().manual_seed(self.seed)
        parts: list[list[Tensor]] = []
        for at in torch.arange(count).split(VIEW_BATCH):
            batch = torch.stack([resize_crop(shown.images[int(i)], side) for i in at])
            parts.append([(255 * x).round().clamp(0, 255).byte() for x in make_views(batch, recipe, generator)])
        made = []
        for number, pixels in enumerate(zip(*parts, strict=True)):
            about = f"{shown.fingerprint}{self.seed}{self.scale}{side}{VERSION}{number}"
            fingerprint = hashlib.sha256(about.encode()).hexdigest()
            made.append(replace(shown, images=torch.cat(pixels), fingerprint=fingerprint, origin=None))
        return made


def spectrum(features: Tensor, seed: int = 0) -> dict[str, Metric]:
    """RankMe, effective rank and feature spread with jackknife intervals.

    With s the singular values of the features and p = s / sum(s): RankMe is exp(-sum (p + 1e-7) log(p + 1e-7)).
    The effective rank is exp(-sum p log p) of the centred features. Singular values are roots of the eigenvalues of
    x'x in float64, so that taking out a group of images is a subtraction.

    Args:
        features: (N, D) float.
        seed: Seed of the groups.
    """
    n, dim = features.shape
    groups = jackknife_groups(n, seed)
    unit = normalize(features.float())
    raw = [_moments(features[groups == g]) for g in range(int(groups.max()) + 1)]
    sphere = [_moments(unit[groups == g]) for g in range(len(raw))]

    def measure(rows: tuple[Tensor, Tensor, Tensor], on_sphere: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
        count, total, gram = rows
        centred = gram - torch.outer(total, total) / count
        variance = (on_sphere[2].diagonal() - on_sphere[1] ** 2 / count).clamp(min=0) / (count - 1).clamp(min=1)
        return {
            "rankme": _exp_entropy(gram, EPSILON),
            "effective_rank": _exp_entropy(centred, 0.0),
            "feature_std": float(variance.sqrt().mean()) * math.sqrt(dim),
        }

    whole, whole_sphere = _sum(raw), _sum(sphere)
    value = measure(whole, whole_sphere)
    pairs = zip(raw, sphere, strict=True) if n > 2 else ()  # two images without one have no spread
    left = [measure(_minus(whole, a), _minus(whole_sphere, b)) for a, b in pairs]
    most = {"rankme": float(dim), "effective_rank": float(min(n, dim)), "feature_std": math.sqrt(2)}
    least = {"rankme": 1.0, "effective_rank": 1.0, "feature_std": 0.0}
    return {key: jackknife_metric(value[key], [v[key] for v in left], n, (least[key], most[key])) for key in value}


Moments = tuple[Tensor, Tensor, Tensor]  # count (), sum (D,) and x'x (D, D), float64


def _moments(x: Tensor) -> Moments:
    x = x.double()
    return torch.tensor(float(len(x)), dtype=torch.float64), x.sum(0), x.T @ x


def _sum(parts: list[Moments]) -> Moments:
    count, total, gram = (torch.stack(list(column)).sum(0) for column in zip(*parts, strict=True))
    return count, total, gram


def _minus(whole: Moments, part: Moments) -> Moments:
    return whole[0] - part[0], whole[1] - part[1], whole[2] - part[2]


def _exp_entropy(gram: Tensor, epsilon: float) -> float:
    """exp(entropy) of the singular values of x, from x'x (D, D) float64."""
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    # Eigenvalues below the rounding of the largest are zero, and their roots would not be small.
    values = values.masked_fill(values < 1e-15 * len(values) * values.max(), 0)
    singular = values.sqrt()
    p = singular / singular.sum().clamp(min=1e-300) + epsilon
    return float(torch.special.entr(p).sum().exp())


def uniformity(unit: Tensor, seed: int = 0) -> Metric:
    """log of the mean of exp(-2 |x - y|^2) over all pairs of different rows, with its jackknife interval.

    Args:
        unit: (N, D) float32, rows of length 1.
        seed: Seed of the jackknife's groups.
    """
    n = len(unit)
    if n < 2:
        return Metric(0.0, n, -4 * T, 0.0)
    groups = jackknife_groups(n, seed)
    parts = [unit[groups == g] for g in range(int(groups.max()) + 1)]
    sums = torch.zeros(len(parts), len(parts), dtype=torch.float64)
    for i, x in enumerate(parts):
        for j in range(i, len(parts)):
            kernel = (2 * T * ((x @ parts[j].T) - 1)).clamp_(max=0).exp_()  # |x - y|^2 = 2 - 2 x'y
            same = float(kernel.diagonal().sum(dtype=torch.float64)) if i == j else 0.0
            sums[i, j] = sums[j, i] = float(kernel.sum(dtype=torch.float64)) - same
    total, count = sums.sum(), float(n)
    value = math.log(float(total) / (count * (count - 1)))
    left = []
    for g, part in enumerate(parts):
        rest = count - len(part)
        if rest > 1:
            inside = float(total - 2 * sums[g].sum() + sums[g, g])
            left.append(math.log(max(inside, 1e-300) / (rest * (rest - 1))))
    return jackknife_metric(value, left, n, (-4 * T, 0.0))


def alignment(first: Tensor, second: Tensor, seed: int = 0) -> Metric:
    """Mean |x - y|^2 over the two views of each image, with its jackknife interval.

    Args:
        first: (N, D) float32, rows of length 1.
        second: (N, D), the other view of the same images.
        seed: Seed of the jackknife's groups.

    Example:
        >>> alignment(torch.eye(4), torch.eye(4)).value
        0.0
    """
    distance = ((first - second).double() ** 2).sum(1)
    groups = jackknife_groups(len(distance), seed)
    left = [float(distance[groups != g].mean()) for g in range(int(groups.max()) + 1)] if len(distance) > 1 else []
    return jackknife_metric(float(distance.mean()), left, len(distance), (0.0, 4.0))

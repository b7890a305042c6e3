"""Few-shot classification of frozen features: k labelled images of each class, averaged over many draws of them.

Heads: the nearest centroid of prototypical networks (Snell et al., NeurIPS 2017, arXiv:1703.05175), ridge regression in
closed form as in big_vision's `fewshot_lsr` and ViT (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929, section 4.1), and
logistic regression as in "A baseline for few-shot classification" (Tian et al., ECCV 2020, arXiv:2003.11539).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result
from ssl_bench.evaluations.frozen.logistic import check_grid
from ssl_bench.evaluations.solvers.neighbours import normalize
from ssl_bench.evaluations.solvers.newton import logistic_regression
from ssl_bench.metrics.intervals import repeated_metric
from ssl_bench.metrics.metric import Metric
from ssl_bench.utils.bounds import Count, Positive, Seed
from ssl_bench.utils.errors import RunError, UserError, unknown

HEADS = ("centroid", "ridge", "logistic")
SUPPORT_NUMBERS = 2**24  # support features at once, in all episodes together: 128 MiB of float64, and solvers' copies
SCORES_PER_BLOCK = 2**20  # scores of queries at once


class FewShot(Evaluator):
    """Accuracy from k images of each class, with interval and standard deviation over episodes.

    Episode e draws its classes and images from seed and e alone; k shots are the first k of the images drawn, so all
    heads, shots and encoders meet the same episodes. Support comes from the training images; the queries are all test
    images of the episode's classes. Features are divided by their length; for ridge and logistic also centred at the
    support's mean and divided by its root mean square. The pooling is chosen on dev at the headline; the strength of
    the penalty on dev for each head and k, with support from fit.

    Args:
        shots: Images of each class. Numbers above the smallest class are left out and listed in `Result.chosen`.
        heads: Any of "centroid", "ridge", "logistic".
        headline_shots: The k of `top1`; when left out of `shots` for want of images, the largest that fits.
        headline_head: The head of `top1`.
        episodes: Draws of the support.
        dev_episodes: Draws for the choices on dev.
        ways: Classes of an episode, drawn anew for each; all of them when None.
        ridge: Penalties to compare, relative to the support's mean eigenvalue.
        C: Inverse penalties of the logistic head to compare.
        poolings: Features to compare.
        seed: Seed of the episodes.

    Raises:
        UserError: An empty grid, or a number out of range.
    """

    version: ClassVar[int] = 3
    metric_help: ClassVar[dict[str, str]] = {
        "top1": "accuracy of the headline head at the headline shots, mean over episodes, percent",
        "top1@k=K,head=HEAD": "the same for every k and head",
    }

    def __init__(
        self,
        shots: tuple[Count, ...] = (1, 5, 10, 25),
        heads: tuple[str, ...] = HEADS,
        headline_shots: Count = 5,
        headline_head: str = "ridge",
        episodes: Count = 100,
        dev_episodes: Count = 20,
        ways: Count | None = None,
        ridge: tuple[Positive, ...] = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0),
        C: tuple[Positive, ...] = (0.01, 0.1, 1.0, 10.0, 100.0),
        poolings: tuple[str, ...] = ("cls", "mean"),
        seed: Seed = 0,
    ) -> None:
        self.shots, self.heads, self.poolings = tuple(shots), tuple(heads), tuple(poolings)
        self.headline_shots, self.headline_head = headline_shots, headline_head
        self.episodes, self.dev_episodes, self.ways, self.seed = episodes, dev_episodes, ways, seed
        self.ridge, self.C = tuple(ridge), tuple(C)
        for name, values in (("shots", self.shots), ("ridge", self.ridge), ("C", self.C)):
            check_grid("fewshot", name, values)
        for head in (*self.heads, headline_head):
            if head not in HEADS:
                raise unknown("few-shot head", head, HEADS)
        if headline_head not in self.heads or headline_shots not in self.shots:
            raise UserError(
                f"fewshot: the headline ({headline_head}, {headline_shots} shots) is not among heads {self.heads} and "
                f"shots {self.shots}"
            )
        if episodes < 2 or dev_episodes < 1 or seed < 0:
            raise UserError(
                f"fewshot: episodes must be at least 2, dev_episodes 1 and seed 0, got {episodes}, {dev_episodes}, "
                f"{seed}"
            )
        if ways is not None and ways < 2:
            raise UserError(f"fewshot: ways must be at least 2 (or null for all classes), got {ways}")

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Choose pooling and penalties on dev, then average over episodes on test.

        Raises:
            UserError: The encoder has none of the poolings, or there are fewer classes than `ways`.
            RunError: Features that mean nothing, or too few images of a class.
        """
        counts = torch.bincount(data.fit.labels, minlength=len(data.fit.classes))
        smallest = int(counts.min())
        shots = [k for k in sorted(set(self.shots)) if k <= smallest]
        if not shots:
            name = data.fit.classes[int(counts.argmin())]
            raise RunError(
                f"fewshot: class {name!r} has {smallest} images to fit on, fewer than {min(self.shots)} shots"
            )
        if self.ways is not None and self.ways > len(counts):
            raise UserError(f"fewshot: {self.ways} ways, but {data.train.name} has {len(counts)} classes")
        head, k = self.headline_head, min(self.headline_shots, shots[-1])

        fit, dev = self.features(encoder, data.fit), self.features(encoder, data.dev)
        names = list(fit)
        dev_top1: dict[tuple[str, int, str], tuple[float, float]] = {}  # head, k, pooling -> dev accuracy, strength

        def tune(head: str, k: int, name: str) -> None:
            x, y, grid = normalize(fit[name]), normalize(dev[name]), self._grid(head)
            found, _ = self._accuracy(head, k, grid, x, data.fit, y, data.dev, self.dev_episodes)
            dev_top1[head, k, name] = max(zip(found.mean(1).tolist(), grid, strict=True), key=lambda item: item[0])

        for name in names:
            tune(head, k, name)
        pooling = max(names, key=lambda name: dev_top1[head, k, name][0])
        for other in self.heads:
            for shot in shots:
                if (other, shot) != (head, k):
                    tune(other, shot, pooling)

        train = normalize(self.features(encoder, data.train)[pooling])
        test = normalize(self.features(encoder, data.test)[pooling])
        metrics: dict[str, Metric] = {}
        std: dict[str, float] = {}
        correct = np.zeros(0)
        for other in self.heads:
            for shot in shots:
                strength = dev_top1[other, shot, pooling][1]
                found = self._accuracy(other, shot, [strength], train, data.train, test, data.test, self.episodes)
                per_episode, per_image = (part[0] for part in found)
                key = f"top1@k={shot},head={other}"
                metrics[key] = repeated_metric(per_episode, per_image)
                std[key] = float(per_episode.std(correction=0))
                if (other, shot) == (head, k) and self.ways is None:  # else images are asked unequally often
                    correct = (per_image / 100).numpy()
        metrics = {"top1": metrics[f"top1@k={k},head={head}"], **metrics}
        tuned = {f"k={s},head={h}": v for (h, s, p), v in dev_top1.items() if p == pooling}
        chosen: dict[str, object] = {
            "pooling": pooling,
            "dev_top1_by_pooling": {name: dev_top1[head, k, name][0] for name in names},
            "headline_shots": k,
            "skipped_shots": [shot for shot in self.shots if shot not in shots],
            "strength": {key: strength for key, (_, strength) in tuned.items() if "centroid" not in key},
            "dev_top1": {key: accuracy for key, (accuracy, _) in tuned.items()},
            "population_std_over_episodes": std,
        }
        return Result(metrics, "top1", correct, chosen, pooling)

    def _grid(self, head: str) -> tuple[float, ...]:
        return {"centroid": (0.0,), "ridge": self.ridge, "logistic": self.C}[head]

    def _accuracy(
        self,
        head: str,
        k: int,
        strengths: Sequence[float],
        features: Tensor,
        support: ImageSet,
        x: Tensor,
        queries: ImageSet,
        count: int,
    ) -> tuple[Tensor, Tensor]:
        """Accuracy of each episode (S, E) and of each test image that was ever asked (S, N), percent."""
        asked, right = torch.zeros(len(x)), torch.zeros(len(strengths), len(x))
        per_episode = []
        most = max(shot for shot in self.shots if shot <= int(torch.bincount(support.labels).min()))
        for classes, rows in self._episodes(support, most, count, k * features.shape[1]):
            weight, bias = linear_heads(head, features[rows[:, :, :k]], strengths)
            classes = classes.repeat(len(strengths), 1)
            correct, valid = predictions(weight.flatten(0, 1), bias.flatten(0, 1), classes, x, queries.labels)
            per_episode.append((correct.sum(1) / valid.sum(1).clamp(min=1)).unflatten(0, bias.shape[:2]))
            asked += valid[: len(rows)].sum(0)
            right += correct.unflatten(0, bias.shape[:2]).sum(1)
        seen = asked > 0
        return 100 * torch.cat(per_episode, 1), 100 * right[:, seen] / asked[seen]

    def _episodes(self, images: ImageSet, most: int, count: int, numbers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Classes (E, W) and support rows (E, W, most), as many episodes at once as memory allows."""
        labels = images.labels.numpy()
        members = [np.flatnonzero(labels == label) for label in range(len(images.classes))]
        ways = self.ways or len(members)
        size = max(1, SUPPORT_NUMBERS // (ways * numbers))
        for start in range(0, count, size):
            classes, rows = [], []
            for episode in range(start, min(start + size, count)):
                random = np.random.default_rng([self.seed, episode])
                classes.append(np.sort(random.permutation(len(members))[:ways]))
                rows.append([random.choice(members[label], most, replace=False) for label in classes[-1]])
            yield torch.from_numpy(np.array(classes)), torch.from_numpy(np.array(rows))


def linear_heads(head: str, support: Tensor, strengths: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The heads of every episode as linear classifiers of the features.

    Centroid: the nearest class mean, |x - m|^2 = |x|^2 - 2 (m x - |m|^2 / 2). Ridge: one-hot targets, free intercept,
    penalty strength x mean eigenvalue. Logistic: `logistic_regression` at C = strength.

    Args:
        head: One of `HEADS`.
        support: (E, W, K, D) float: E episodes, W classes, K shots.
        strengths: S of the penalty (ridge), or its inverse (logistic); the centroid has none and takes one number.

    Returns:
        weight (S, E, D, W) and bias (S, E, W), float32.

    Example:
        >>> support = torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]])  # one episode, two classes, one shot
        >>> weight, bias = linear_heads("centroid", support, [0.0])
        >>> weight[0, 0], bias[0, 0]
        (tensor([[0., 1.],
                [1., 0.]]), tensor([-0.5000, -0.5000]))
    """
    episodes, ways, shots, _ = support.shape
    if head == "centroid":
        mean = support.mean(2)
        return mean.mT[None], -(mean**2).sum(2)[None] / 2
    x = support.flatten(1, 2).double()
    centre = x.mean(1, keepdim=True)
    x = x - centre
    scale = (x**2).mean((1, 2), keepdim=True).clamp(min=1e-30).rsqrt()
    x = x * scale
    basis = None
    if x.shape[1] < x.shape[2]:  # the solution is a combination of the support: as many coordinates as images suffice
        basis = torch.linalg.qr(x.mT).Q
        x = x @ basis
    labels = torch.arange(ways).repeat_interleave(shots)
    if head == "ridge":
        target = torch.eye(ways, dtype=torch.float64)[labels] - 1 / ways
        gram, product = x.mT @ x, x.mT @ target
        unit = torch.eye(gram.shape[-1], dtype=torch.float64)
        mean_eigenvalue = len(labels)  # of the full (D, D) matrix: every coordinate has mean square 1
        factors = (torch.linalg.cholesky(gram + strength * mean_eigenvalue * unit) for strength in strengths)
        weight = torch.stack([torch.cholesky_solve(product, factor) for factor in factors])
        bias = torch.full((len(strengths), episodes, ways), 1 / ways, dtype=torch.float64)
    else:
        found = logistic_regression(x, labels, ways, strengths)
        weight, bias = found.weight, found.bias
    weight = (weight if basis is None else basis @ weight) * scale
    return weight.float(), (bias - (centre @ weight)[:, :, 0]).float()


def predictions(weight: Tensor, bias: Tensor, classes: Tensor, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What every episode's head says about every query.

    Args:
        weight: (E, D, W) float32.
        bias: (E, W) float32.
        classes: (E, W) int64, the class of each output.
        x: (N, D) float32.
        labels: (N,) int64.

    Returns:
        (E, N) float32 0 or 1 each: right, and of a class of the episode. Others are never right.
    """
    fused, flat = weight.transpose(0, 1).flatten(1), bias.flatten()
    right = []
    step = max(1, SCORES_PER_BLOCK // fused.shape[1])
    for part, truth in zip(x.split(step), labels.split(step), strict=True):
        said = torch.addmm(flat, part, fused).unflatten(1, bias.shape).argmax(2)
        right.append(classes.gather(1, said.T) == truth)
    valid = torch.zeros(len(classes), int(max(labels.max(), classes.max())) + 1, dtype=torch.bool)
    return torch.cat(right, 1).float(), valid.scatter(1, classes, True)[:, labels].float()

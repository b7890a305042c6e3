"""Logistic regression on frozen features, solved exactly: the linear probe without a learning rate.

The protocol of Kornblith et al. (CVPR 2019, arXiv:1805.08974, appendix A.2) and DINOv2 (Oquab et al., TMLR 2024,
arXiv:2304.07193, `log_regression.py`): L-BFGS, L2, the strength chosen on held-out training images, a refit on all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result, at_edge
from ssl_bench.evaluations.frozen.linear import standardisation
from ssl_bench.evaluations.solvers.lbfgs import minimise
from ssl_bench.evaluations.solvers.neighbours import normalize
from ssl_bench.metrics.metric import Metric, accuracy_metric, true_class_rank
from ssl_bench.metrics.quantiles import Z
from ssl_bench.utils.errors import UserError, unknown

INPUTS = ("standardised", "normalised", "raw")
SCORES_PER_BLOCK = {"cpu": 2**17, "cuda": 2**24}  # logits worked on at once; on a CPU they should stay in cache
LOOSE = 10  # times `tol`, for heads that are only compared: a fifth of the steps and the same order


class Logistic(Evaluator):
    """Multinomial logistic regression: the minimum of sum_i cross_entropy_i + |W|^2 / (2 C), as in scikit-learn.

    All C are solved at once, by L-BFGS in coordinates in which the features are uncorrelated. They are fitted on fit
    (to ten times `tol`) and compared on dev (by accuracy, then by cross-entropy); the winning C is then fitted on all
    training images, and that head alone meets the test images.

    Args:
        C: Inverse strengths of the L2 penalty to compare.
        inputs: "standardised" per dimension; "normalised" to length 1, as DINO's; or "raw".
        intercept: Whether there is a bias; it is not penalised.
        poolings: Features to compare.
        tol: Largest component of the gradient at the solution.
        max_steps: Steps of L-BFGS at most; heads that need more are counted in `chosen.unfinished`.

    Raises:
        UserError: An empty grid, or a number out of range.
    """

    version: ClassVar[int] = 2
    metric_help: ClassVar[dict[str, str]] = {
        "top1": "accuracy, percent",
        "top5": "truth among the five classes with the highest scores, percent",
        "mean_per_class": "mean over classes of the accuracy in each, percent",
    }

    def __init__(
        self,
        C: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
        inputs: str = "standardised",
        intercept: bool = True,
        poolings: tuple[str, ...] = ("cls", "mean"),
        tol: float = 1e-4,
        max_steps: int = 1000,
    ) -> None:
        self.C, self.inputs, self.intercept = tuple(C), inputs, intercept
        self.poolings, self.tol, self.max_steps = tuple(poolings), tol, max_steps
        check_grid("logistic", "C", self.C)
        if inputs not in INPUTS:
            raise unknown("logistic input", inputs, INPUTS)
        if tol <= 0 or max_steps < 1:
            raise UserError(f"logistic: tol must be > 0 and max_steps >= 1, got {tol} and {max_steps}")

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Choose pooling and C on dev, fit them again on all training images, score test once.

        Raises:
            UserError: The encoder has none of the poolings.
            RunError: Features that mean nothing.
        """
        head, pooling, chosen = self.choose(encoder, data)
        scores = head.scores(self.features(encoder, data.test)[pooling])[:, 0]
        rank = true_class_rank(scores, data.test.labels)
        correct = (rank == 0).numpy()
        metrics = {
            "top1": accuracy_metric(correct),
            "top5": accuracy_metric((rank < 5).numpy()),
            "mean_per_class": class_metric(correct, data.test.labels.numpy()),
        }
        return Result(metrics, "top1", correct, chosen, pooling)

    def choose(self, encoder: Encoder, data: Data) -> tuple[Heads, str, dict[str, object]]:
        """The one head that may meet the test images, its pooling, and what a row says about the choice."""
        classes = len(data.train.classes)
        fit, dev = self.features(encoder, data.fit), self.features(encoder, data.dev)
        tried: dict[tuple[str, float], tuple[float, float]] = {}  # pooling, C -> dev accuracy, -dev cross-entropy
        for name, features in fit.items():
            heads = self.fit(features, data.fit.labels, classes, self.C, LOOSE * self.tol)
            for c, found in zip(self.C, heads.run_evaluations(dev[name], data.dev.labels), strict=True):
                tried[name, c] = found
        best = max(tried, key=tried.__getitem__)
        pooling, c = best
        final = self.fit(self.features(encoder, data.train)[pooling], data.train.labels, classes, [c])
        chosen: dict[str, object] = {
            "pooling": pooling,
            "C": c,
            "dev_top1": tried[best][0],
            "dev_top1_by_pooling": {p: max(v[0] for (q, _), v in tried.items() if q == p) for p in fit},
            "C_at_edge": at_edge(c, self.C),
            "steps": final.steps,
            "unfinished": final.unfinished,
        }
        return final, pooling, chosen

    def fit(
        self, features: Tensor, labels: Tensor, classes: int, C: Sequence[float], tol: float | None = None
    ) -> Heads:
        """One head for each C, on a GPU if there is one. `features` (N, D) float32, `labels` (N,) int64."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        transform = Transform.of(features, self.inputs)
        x, strengths = transform(features).to(device), torch.tensor(C, dtype=torch.float64, device=device)
        weight, bias, steps, unfinished = logistic_regression(
            x, labels.to(device), classes, strengths, self.intercept, tol or self.tol, self.max_steps
        )
        return Heads(transform, weight.float().cpu(), bias.float().cpu(), steps, unfinished)


@dataclass(frozen=True, eq=False)
class Transform:
    """What a head does to features first: (x - mean) * scale, after division by their length if `unit`."""

    unit: bool
    mean: Tensor | float
    scale: Tensor | float

    @classmethod
    def of(cls, features: Tensor, kind: str) -> Transform:
        """The transform of a name in `INPUTS`, with the statistics of (N, D) features."""
        return cls(False, *standardisation(features)) if kind == "standardised" else cls(kind == "normalised", 0.0, 1.0)

    def __call__(self, features: Tensor) -> Tensor:
        return ((normalize(features) if self.unit else features) - self.mean) * self.scale


@dataclass(frozen=True, eq=False)
class Heads:
    """B linear classifiers of the same features.

    Attributes:
        transform: Applied to the features.
        weight: (B, D, K) float32.
        bias: (B, K) float32.
        steps: Steps that the slowest took.
        unfinished: Heads that were stopped before their minimum.
    """

    transform: Transform
    weight: Tensor
    bias: Tensor
    steps: int
    unfinished: int

    def scores(self, features: Tensor) -> Tensor:
        """(N, B, K) float32 of features (N, D)."""
        weight = self.weight.transpose(0, 1).flatten(1)
        blocks = features.split(max(1, SCORES_PER_BLOCK["cpu"] // weight.shape[1]))
        rows = torch.cat([torch.addmm(self.bias.flatten(), self.transform(x), weight) for x in blocks])
        return rows.unflatten(1, (len(self.weight), -1))

    def run_evaluations(self, features: Tensor, labels: Tensor) -> list[tuple[float, float]]:
        """Accuracy in percent and minus the mean cross-entropy of each head."""
        correct, loss = [], []
        step = max(1, SCORES_PER_BLOCK["cpu"] // self.bias.numel())
        for x, y in zip(features.split(step), labels.split(step), strict=True):
            scores = self.scores(x).double()
            correct.append((scores.argmax(2) == y[:, None]).sum(0))
            loss.append((scores.logsumexp(2) - scores[torch.arange(len(y)), :, y]).sum(0))
        accuracy, entropy = 100 * torch.stack(correct).sum(0) / len(labels), torch.stack(loss).sum(0) / len(labels)
        return list(zip(accuracy.tolist(), (-entropy).tolist(), strict=True))


def logistic_regression(
    x: Tensor,
    labels: Tensor,
    classes: int,
    C: Tensor,
    intercept: bool = True,
    tol: float = 1e-4,
    max_steps: int = 1000,
) -> tuple[Tensor, Tensor, int, int]:
    """Minimise sum_i cross_entropy_i + |W|^2 / (2 C) for B problems at once.

    Products are taken in the dtype of `x`, sums and the solver's state in float64. In the eigenbasis of x'x / N, each
    coordinate divided by the root of (eigenvalue / classes + 1 / (C N)), the Hessian at W = 0 is the identity, however
    correlated the features are: that, and not x, is what L-BFGS sees.

    Args:
        x: (N, D) float, shared by all problems, or (B, N, D), one set for each.
        labels: (N,) int64 in [0, classes).
        classes: K.
        C: (B,) float64.
        intercept: Whether there is a bias, without penalty.
        tol: On the largest component of the gradient of the mean, in the coordinates above.
        max_steps: Steps at most.

    Returns:
        weight (B, D, K) and bias (B, K), float64; the number of steps; and how many problems needed more.
    """
    problems, n, dim, device = len(C), len(labels), x.shape[-1], x.device
    penalty = (1 / (C * n))[:, None, None]
    values, basis = torch.linalg.eigh(_gram(x) / n)
    scale = (values.clamp(min=0)[..., None] / classes + penalty).rsqrt()  # (B, D, 1)
    bias_scale = classes**0.5 if intercept else 0.0
    step = max(1, SCORES_PER_BLOCK[device.type] // (problems * classes))
    rows = torch.arange(min(step, n), device=device)

    def of(each: Tensor, which: Tensor) -> Tensor:
        return each if each.ndim == 2 or len(which) == problems else each[which]  # no copy when all are asked

    def unpack(v: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        v = v.view(len(v), dim + 1, classes)
        return of(basis, which) @ (scale[which] * v[:, :dim]), bias_scale * v[:, dim]

    def objective(v: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = unpack(v, which)
        count, asked = len(v), of(x, which)
        w, b = weight.to(x.dtype), bias.to(x.dtype)
        # Columns by class, then problem: a softmax along strided columns is several times faster than along short rows.
        columns, row = w.permute(1, 2, 0).flatten(1), b.T.flatten()
        value, g, g_bias = v.new_zeros(count), torch.zeros_like(weight), torch.zeros_like(bias)
        for start in range(0, n, step):
            y, at = labels[start : start + step], rows[: min(step, n - start)]
            if x.ndim == 2:  # one product for all problems
                part = asked[start : start + step]
                error = torch.addmm(row, part, columns).unflatten(1, (classes, count)).log_softmax(1)
                value -= error[at, y].sum(0, dtype=torch.float64)
                error.exp_()[at, y] -= 1
                g += (part.T @ error.flatten(1)).unflatten(1, (classes, count)).permute(2, 0, 1)
                g_bias += error.sum(0, dtype=torch.float64).T
            else:
                part = asked[:, start : start + step]
                error = torch.baddbmm(b[:, None], part, w).log_softmax(2)
                value -= error[:, at, y].sum(1, dtype=torch.float64)
                error.exp_()[:, at, y] -= 1
                g += part.mT @ error
                g_bias += error.sum(1, dtype=torch.float64)
        g = g / n + penalty[which] * weight
        value = value / n + (penalty[which] * weight**2).sum((1, 2)) / 2
        local = scale[which] * (of(basis, which).mT @ g)
        return value, torch.cat([local, bias_scale * g_bias[:, None] / n], 1).flatten(1)

    begin = torch.zeros(problems, (dim + 1) * classes, dtype=torch.float64, device=device)
    v, solved, steps = minimise(objective, begin, tol, max_steps, rounding=0.1 * torch.finfo(x.dtype).eps)
    weight, bias = unpack(v, torch.arange(problems, device=device))
    return weight, bias, steps, int((~solved).sum())


def _gram(x: Tensor) -> Tensor:
    """x'x, (D, D) or (B, D, D), summed in float64 a block of rows at a time."""
    blocks = x.split(4096, dim=-2)
    return torch.stack([(part.mT @ part).double() for part in blocks]).sum(0)


def class_metric(correct: np.ndarray[Any, np.dtype[np.bool_]], labels: np.ndarray[Any, np.dtype[np.int64]]) -> Metric:
    """Mean over classes of the accuracy in each, percent; what Kornblith et al. report on sets of uneven classes.

    The interval takes the images of each class as drawn from it: Z sqrt(sum_c p_c (1 - p_c) / (n_c - 1)) / K.

    Args:
        correct: (N,) bool.
        labels: (N,) int64; classes without an image don't count.

    Example:
        >>> class_metric(np.array([True, True, True, False, True]), np.array([0, 0, 0, 0, 1])).value
        87.5
    """
    n = np.bincount(labels)
    p, n = np.bincount(labels, correct)[n > 0] / n[n > 0], n[n > 0]
    value = 100 * float(p.mean())
    half = 100 * Z * math.sqrt(float((p * (1 - p) / np.maximum(n - 1, 1)).sum())) / len(n)
    return Metric(value, len(labels), max(0.0, value - half), min(100.0, value + half))


def check_grid(evaluation: str, name: str, values: Sequence[float]) -> None:
    """Refuse an empty grid and numbers that are not positive.

    Raises:
        UserError: Naming the evaluation and the keyword.
    """
    if min(values, default=0) <= 0:
        raise UserError(f"{evaluation}: {name} must be positive numbers, got {tuple(values)}")

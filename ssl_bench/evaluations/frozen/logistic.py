"""Logistic regression on frozen features, solved exactly: the linear probe without a learning rate.

The protocol of Kornblith et al. (CVPR 2019, arXiv:1805.08974, appendix A.2) and DINOv2 (Oquab et al., TMLR 2024,
arXiv:2304.07193, `log_regression.py`): L-BFGS, L2, the strength chosen on held-out training images, a refit on all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result, at_edge
from ssl_bench.evaluations.heads import Heads, Transform
from ssl_bench.evaluations.selection import choose_head
from ssl_bench.evaluations.solvers.newton import logistic_regression
from ssl_bench.metrics.metric import Metric, accuracies, true_class_rank
from ssl_bench.metrics.quantiles import Z
from ssl_bench.utils.bounds import Count, Positive
from ssl_bench.utils.errors import UserError, unknown

INPUTS = ("standardised", "normalised", "raw")


class Logistic(Evaluator):
    """Multinomial logistic regression: the minimum of sum_i cross_entropy_i + |W|^2 / (2 C), as in scikit-learn.

    The heads are fitted on fit, by Newton's method, and compared on dev (by accuracy, then by cross-entropy); the
    winning pooling and C are then fitted on all training images to the same tolerance, and that head alone meets the
    test images.

    Args:
        C: Inverse strengths of the L2 penalty to compare.
        inputs: "standardised" per dimension; "normalised" to length 1, as DINO's; or "raw".
        intercept: Whether there is a bias; it is not penalised.
        poolings: Features to compare.
        tol: Relative distance of the objective from its minimum; see `logistic_regression`.
        max_steps: Steps of Newton's method at most for each C; heads that need more are counted in
            `chosen.unfinished`, those that are compared and the one that is reported alike.

    Raises:
        UserError: An empty grid, or a number out of range.
    """

    version: ClassVar[int] = 3
    metric_help: ClassVar[dict[str, str]] = {
        "top1": "accuracy, percent",
        "top5": "truth among the five classes with the highest scores, percent",
        "mean_per_class": "mean over classes of the accuracy in each, percent",
    }

    def __init__(
        self,
        C: tuple[Positive, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
        inputs: str = "standardised",
        intercept: bool = True,
        poolings: tuple[str, ...] = ("cls", "mean"),
        tol: Positive = 1e-5,
        max_steps: Count = 100,
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
        metrics = {**accuracies(rank), "mean_per_class": class_metric(correct, data.test.labels.numpy())}
        return Result(metrics, "top1", correct, chosen, pooling)

    def choose(self, encoder: Encoder, data: Data) -> tuple[Heads, str, dict[str, object]]:
        """The one head that may meet the test images, its pooling, and what a row says about the choice."""
        classes = len(data.train.classes)
        fit, dev = self.features(encoder, data.fit), self.features(encoder, data.dev)
        tried: dict[tuple[str, float], tuple[float, float]] = {}  # pooling, C -> dev accuracy, -dev cross-entropy
        unfinished = 0
        for name, features in fit.items():
            heads, left = self.fit(features, data.fit.labels, classes, self.C)
            found = heads.evaluate(dev[name], data.dev.labels)
            tried |= {(name, c): on_dev for c, on_dev in zip(self.C, found, strict=True)}
            unfinished += left
        (pooling, c), facts = choose_head("logistic", tried)
        final, left = self.fit(self.features(encoder, data.train)[pooling], data.train.labels, classes, [c])
        chosen = {"pooling": pooling, "C": c, **facts, "C_at_edge": at_edge(c, self.C), "unfinished": unfinished + left}
        return final, pooling, chosen

    def fit(self, features: Tensor, labels: Tensor, classes: int, C: Sequence[float]) -> tuple[Heads, int]:
        """One head for each C, on a GPU if there is one, and how many were stopped before their minimum.

        Args:
            features: (N, D) float32.
            labels: (N,) int64 in [0, classes).
            classes: Number of classes.
            C: Inverse strengths of the penalty.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        transform = Transform.of(features, self.inputs)
        found = logistic_regression(
            transform(features).to(device)[None],
            labels.to(device),
            classes,
            C,
            self.intercept,
            self.tol,
            self.max_steps,
        )
        weight, bias = found.weight[:, 0].float().cpu(), found.bias[:, 0].float().cpu()
        return Heads(transform, weight, bias), found.unfinished


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

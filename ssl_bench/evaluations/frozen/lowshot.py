"""Low-shot classification: logistic regression on frozen features with labels for few of the training images.

The 1 % and 10 % protocol of DINO (Caron et al., ICCV 2021, arXiv:2104.14294, appendix), iBOT (Zhou et al., ICLR 2022,
arXiv:2111.07832, Table 12) and MSN (Assran et al., ECCV 2022, arXiv:2204.07141); with more fractions, the curve of
label efficiency.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result, at_edge
from ssl_bench.evaluations.frozen.logistic import Logistic
from ssl_bench.evaluations.selection import choose_head
from ssl_bench.evaluations.subsets import balanced_subset, listed
from ssl_bench.metrics.intervals import repeated_metric
from ssl_bench.metrics.metric import Metric, true_class_rank
from ssl_bench.utils.bounds import Area, Count, Positive, Seed
from ssl_bench.utils.errors import UserError


class LowShot(Evaluator):
    """Accuracy of `Logistic` with some labels, the mean over draws of which images have one.

    A draw takes the same number of images of every class (at least one, at most all); a larger fraction contains the
    smaller ones of its draw. Pooling and C are chosen for each fraction by the mean dev accuracy over the draws, fitted
    on a draw from fit; so dev's labels count towards the choice of two numbers, and towards nothing else. The chosen
    settings are then fitted on draws from all training images.

    Args:
        fractions: Shares of the training images that have labels, in (0, 1]; the first is the headline.
        draws: Draws of each fraction.
        lists: Files that name the labelled images instead, one file a draw, one file name of an image a line, as the
            official 1 % and 10 % lists of ImageNet do. `fractions` and `draws` are then not used.
        C: Inverse strengths of the L2 penalty to compare, as in `Logistic`.
        inputs: As in `Logistic`.
        intercept: As in `Logistic`.
        poolings: Features to compare.
        seed: Seed of the draws.

    Raises:
        UserError: An empty grid, or a number out of range.
    """

    version: ClassVar[int] = 3
    metric_help: ClassVar[dict[str, str]] = {
        "top1": "accuracy at the headline fraction, mean over draws, percent",
        "top1@F%": "the same with F % of the labels (`top1@listed`: with those of the lists)",
        "top5@F%": "truth among the five classes with the highest scores, percent",
    }

    def __init__(
        self,
        fractions: tuple[Area, ...] = (0.01, 0.1),
        draws: Count = 3,
        lists: tuple[str, ...] = (),
        C: tuple[Positive, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
        inputs: str = "standardised",
        intercept: bool = True,
        poolings: tuple[str, ...] = ("cls", "mean"),
        seed: Seed = 0,
    ) -> None:
        self.fractions, self.draws, self.lists, self.C = tuple(fractions), draws, tuple(lists), tuple(C)
        self.inputs, self.intercept, self.poolings, self.seed = inputs, intercept, tuple(poolings), seed
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise UserError(f"lowshot: fractions must lie in (0, 1], got {self.fractions}")
        if draws < 1 or seed < 0:
            raise UserError(f"lowshot: draws must be at least 1 and seed at least 0, got {draws} and {seed}")
        self.head = Logistic(self.C, inputs, intercept)

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Choose pooling and C on dev for each fraction, fit them on draws from all training images, score test once.

        Raises:
            UserError: The encoder has none of the poolings, or a list does not fit the images.
            RunError: Features that mean nothing.
        """
        classes = len(data.train.classes)
        fit, dev = self.features(encoder, data.fit), self.features(encoder, data.dev)
        budgets = {f"{100 * fraction:g}%": fraction for fraction in self.fractions} if not self.lists else {"listed": 0}
        best: dict[str, tuple[str, float]] = {}
        dev_top1: dict[str, object] = {}
        unfinished = 0
        for budget, fraction in budgets.items():
            rows = self._labelled(data.fit, fraction)
            tried: dict[tuple[str, float], tuple[float, float]] = {}
            for name, features in fit.items():
                found = []
                for index in rows:
                    heads, left = self.head.fit(features[index], data.fit.labels[index], classes, self.C)
                    found.append(heads.evaluate(dev[name], data.dev.labels))
                    unfinished += left
                tried |= {(name, c): _mean(scores) for c, *scores in zip(self.C, *found, strict=True)}
            best[budget], facts = choose_head("lowshot", tried)
            dev_top1[budget] = facts["dev_top1"]

        train, test = self.features(encoder, data.train), self.features(encoder, data.test)
        metrics: dict[str, Metric] = {}
        labelled: dict[str, int] = {}
        std: dict[str, float] = {}
        correct: dict[str, np.ndarray] = {}
        for budget, fraction in budgets.items():
            pooling, c = best[budget]
            rows = self._labelled(data.train, fraction)
            ranks = []
            for index in rows:
                head, left = self.head.fit(train[pooling][index], data.train.labels[index], classes, [c])
                unfinished += left
                ranks.append(true_class_rank(head.scores(test[pooling])[:, 0], data.test.labels))
            for top in (1, 5):
                right = 100 * (torch.stack(ranks) < top).double()
                metrics[f"top{top}@{budget}"] = repeated_metric(right.mean(1), right.mean(0))
                if top == 1:
                    std[budget] = float(right.mean(1).std(correction=0))
                    correct[budget] = right.mean(0).numpy() / 100
            labelled[budget] = len(rows[0])
        headline = next(iter(budgets))
        metrics = {"top1": metrics[f"top1@{headline}"], **metrics}
        chosen: dict[str, object] = {
            "pooling": {budget: pooling for budget, (pooling, _) in best.items()},
            "C": {budget: c for budget, (_, c) in best.items()},
            "C_at_edge": [budget for budget, (_, c) in best.items() if at_edge(c, self.C)],
            "dev_top1": dev_top1,
            "unfinished": unfinished,
            "labelled_images": labelled,
            "population_std_over_draws": std,
            "lists_sha256": [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in self.lists],
        }
        return Result(metrics, "top1", correct[headline], chosen, best[headline][0])

    def _labelled(self, images: ImageSet, fraction: float) -> list[Tensor]:
        """Indices of the images with a label, one tensor a draw."""
        if self.lists:
            return [listed(images, path) for path in self.lists]
        return [balanced_subset(images.labels, len(images.classes), fraction, self.seed + d) for d in range(self.draws)]


def _mean(scores: list[tuple[float, float]]) -> tuple[float, float]:
    """Mean accuracy and mean negative cross-entropy over draws."""
    accuracy, entropy = np.mean(np.array(scores), axis=0).tolist()
    return accuracy, entropy

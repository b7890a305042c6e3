"""k-NN classification of frozen features: weighted votes of the most similar training images, nothing trained.

Instance discrimination (Wu et al., CVPR 2018, arXiv:1805.01978), with the settings of DINO (Caron et al., ICCV 2021,
arXiv:2104.14294, section 4.1 and the authors' `eval_knn.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result
from ssl_bench.evaluations.solvers.neighbours import QUERIES_PER_BLOCK, nearest
from ssl_bench.metrics.metric import Metric, accuracy_metric, true_class_rank
from ssl_bench.metrics.votes import votes
from ssl_bench.utils.bounds import Count, Positive
from ssl_bench.utils.errors import RunError, UserError

VOTE_DOUBLES = 2**21  # bounds the memory of a vote: 16 MiB of float64


class KNN(Evaluator):
    """Class by vote of the k nearest training images, each with weight exp(cosine / temperature).

    The bank is made of all training images under the test transform. One search serves every k and temperature. The
    pooling is chosen on the dev split (bank: the fit split) at the headline k and temperature; every pooling's numbers
    are reported too.

    Args:
        k: Numbers of neighbours to report. Those above the size of the bank are left out and listed in `Result.chosen`.
        temperature: Vote temperatures to report; 0.07 is DINO's and iBOT's, 0.1 MoCo's (CIFAR demo) and lightly's.
        headline_k: The k of `top1`: 20 is DINO's best. A smaller bank takes the largest k that fits.
        headline_temperature: The temperature of `top1`.
        poolings: Features to compare.
        half: Find candidates in half precision (bf16 on a CPU, fp16 on a GPU), 64 more than neighbours, and
            compare those again in float32: faster on a large bank. Otherwise the search is exact.

    Raises:
        UserError: A k or temperature is not positive, or the headline is not among those reported.
    """

    version: ClassVar[int] = 2
    metric_help: ClassVar[dict[str, str]] = {
        "top1": "accuracy at the headline k and temperature, percent",
        "top5": "truth among the five classes with most votes (at most k) at the headline, percent",
        "top1@k=K,T=T": "accuracy at another k and temperature, percent",
        "POOLING/...": "the same with that pooling instead of the one chosen on dev",
    }

    def __init__(
        self,
        k: tuple[Count, ...] = (1, 5, 10, 20, 50, 100, 200),
        temperature: tuple[Positive, ...] = (0.07, 0.1),
        headline_k: Count = 20,
        headline_temperature: Positive = 0.07,
        poolings: tuple[str, ...] = ("cls", "mean"),
        half: bool = False,
    ) -> None:
        self.k = tuple(k)
        self.temperature = tuple(temperature)
        self.headline_k = headline_k
        self.headline_temperature = headline_temperature
        self.poolings = tuple(poolings)
        self.half = half
        for name, value in (("k", min(self.k, default=0)), ("temperature", min(self.temperature, default=0))):
            if value <= 0:
                raise UserError(f"knn: {name} must be positive numbers, got {getattr(self, name)}")
        if headline_k not in self.k:
            raise UserError(f"knn: headline_k {headline_k} is not one of k {self.k}")
        if headline_temperature not in self.temperature:
            raise UserError(
                f"knn: headline_temperature {headline_temperature} is not one of temperature {self.temperature}"
            )

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Choose the pooling on dev, then vote for test.

        Raises:
            UserError: The encoder has none of the poolings.
            RunError: Features that mean nothing, or fewer training images than the smallest k.
        """
        ks = [k for k in sorted(set(self.k)) if k <= len(data.train)]
        if not ks:
            raise RunError(f"knn: {len(data.train)} training images are fewer than the smallest k, {min(self.k)}")
        headline_k, temperature = min(self.headline_k, ks[-1]), self.headline_temperature
        classes = len(data.train.classes)

        fit, dev = self.features(encoder, data.fit), self.features(encoder, data.dev)
        dev_k = min(headline_k, len(data.fit))
        dev_top1: dict[str, float] = {}
        for name in fit:
            found = self.ranks(fit[name], data.fit.labels, dev[name], data.dev.labels, classes, [dev_k], [temperature])
            dev_top1[name] = 100 * float((found[dev_k, temperature] == 0).double().mean())
        pooling = max(dev_top1, key=dev_top1.__getitem__)

        train, test = self.features(encoder, data.train), self.features(encoder, data.test)
        per_pooling: dict[str, dict[str, Metric]] = {}
        for name in train:
            asked = (train[name], data.train.labels, test[name], data.test.labels, classes)
            found = self.ranks(*asked, ks, self.temperature)
            top = found[headline_k, temperature]
            per_pooling[name] = {
                "top1": accuracy_metric((top == 0).numpy()),
                "top5": accuracy_metric((top < min(5, headline_k)).numpy()),
            } | {f"top1@k={k},T={t:g}": accuracy_metric((rank == 0).numpy()) for (k, t), rank in found.items()}
            if name == pooling:
                correct = (top == 0).numpy()

        metrics = dict(per_pooling[pooling])
        for name, numbers in per_pooling.items():
            metrics |= {f"{name}/{metric}": value for metric, value in numbers.items()}
        chosen: dict[str, object] = {
            "pooling": pooling,
            "dev_top1": dev_top1,
            "headline_k": headline_k,
            "headline_temperature": temperature,
            "skipped_k": [k for k in self.k if k not in ks],
        }
        return Result(metrics, "top1", correct, chosen, pooling)

    def ranks(
        self,
        bank: Tensor,
        bank_labels: Tensor,
        queries: Tensor,
        labels: Tensor,
        classes: int,
        ks: Sequence[int],
        temperatures: Sequence[float],
    ) -> dict[tuple[int, float], Tensor]:
        """`ranks` of all queries; no more than a block of them has its neighbours in memory."""
        blocks = zip(nearest(bank, queries, max(ks), self.half), labels.split(QUERIES_PER_BLOCK), strict=True)
        parts = [ranks(s, bank_labels[index], truth, classes, ks, temperatures) for (s, index), truth in blocks]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def ranks(
    similarity: Tensor,
    neighbours: Tensor,
    labels: Tensor,
    num_classes: int,
    ks: Sequence[int],
    temperatures: Sequence[float],
) -> dict[tuple[int, float], Tensor]:
    """Place of the true class in the order of votes (`true_class_rank`) for every k and temperature.

    Args:
        similarity: (N, K) float, largest first.
        neighbours: (N, K) int64, classes of the neighbours.
        labels: (N,) int64, the true classes.
        num_classes: C.
        ks: Rising, at most K.
        temperatures: Any order.

    Returns:
        (k, temperature) to (N,) int64 ranks; 0 is a right prediction. Memory beyond them is about 16 MiB.
    """
    found: dict[tuple[int, float], list[Tensor]] = {(k, t): [] for t in temperatures for k in ks}
    step = max(1, VOTE_DOUBLES // (2 * num_classes + 3 * similarity.shape[1]))
    for s, near, truth in zip(similarity.split(step), neighbours.split(step), labels.split(step), strict=True):
        for t in temperatures:
            for k, v in votes(s, near, num_classes, ks, t):
                found[k, t].append(true_class_rank(v, truth))
    return {key: torch.cat(parts) for key, parts in found.items()}

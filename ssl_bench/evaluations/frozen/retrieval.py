"""Image retrieval by cosine similarity: an image of the same class is a hit.

Mean average precision over the whole ranking and recall@k as in deep metric learning (Oh Song et al., CVPR 2016,
arXiv:1511.06452, section 6; Musgrave et al., ECCV 2020, arXiv:2003.08505).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result
from ssl_bench.evaluations.frozen.logistic import check_grid
from ssl_bench.evaluations.solvers.neighbours import normalize
from ssl_bench.metrics.intervals import mean_metric
from ssl_bench.metrics.metric import Metric, accuracy_metric
from ssl_bench.utils.bounds import Count
from ssl_bench.utils.errors import RunError, unknown

GALLERIES = ("test", "train")
RULES = ("step", "trapezoid")
SIMILARITIES_PER_BLOCK = 2**22  # 16 MiB of float32


class Retrieval(Evaluator):
    """Every test image searches a gallery; exact, a block of queries at a time.

    The gallery is the other test images (leave one out) or all training images. Queries without an image of their class
    in the gallery are left out and counted. The pooling is chosen by mean average precision on dev, leaving one out or
    with fit as the gallery.

    Args:
        gallery: "test" or "train".
        k: Recall@k: is an image of the query's class among the first k?
        rule: Area under precision and recall: "step" (scikit-learn's) or "trapezoid" (Oxford and Paris Buildings').
        poolings: Features to compare.

    Raises:
        UserError: A k that is not positive, or an unknown gallery or rule.
    """

    version: ClassVar[int] = 1
    metric_help: ClassVar[dict[str, str]] = {
        "map": "mean average precision over the whole ranking, percent",
        "recall@k=K": "queries with an image of their class among the first K, percent",
    }

    def __init__(
        self,
        gallery: str = "test",
        k: tuple[Count, ...] = (1, 5, 10),
        rule: str = "step",
        poolings: tuple[str, ...] = ("cls", "mean"),
    ) -> None:
        self.gallery, self.k, self.rule, self.poolings = gallery, tuple(k), rule, tuple(poolings)
        check_grid("retrieval", "k", self.k)
        if gallery not in GALLERIES:
            raise unknown("retrieval gallery", gallery, GALLERIES)
        if rule not in RULES:
            raise unknown("retrieval rule", rule, RULES)

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Choose the pooling on dev, then search with every test image.

        Raises:
            UserError: The encoder has none of the poolings.
            RunError: Features that mean nothing, or no query has an image of its class in the gallery.
        """
        fit, dev = self.features(encoder, data.fit), self.features(encoder, data.dev)
        dev_map: dict[str, float] = {}
        for name in fit:
            precision, _ = self._search(fit[name], data.fit.labels, dev[name], data.dev.labels)
            dev_map[name] = float(precision.mean()) if len(precision) else 0.0
        pooling = max(dev_map, key=dev_map.__getitem__)

        train, test = self.features(encoder, data.train)[pooling], self.features(encoder, data.test)[pooling]
        precision, first = self._search(train, data.train.labels, test, data.test.labels)
        if not len(precision):
            raise RunError(f"retrieval: no image of {data.test.name} has another of its class in the gallery")
        metrics: dict[str, Metric] = {"map": mean_metric(precision)}
        metrics |= {f"recall@k={k}": accuracy_metric((first < k).numpy()) for k in self.k}
        chosen: dict[str, object] = {
            "pooling": pooling,
            "dev_map": dev_map,
            "queries_without_a_match": len(data.test) - len(precision),
        }
        return Result(metrics, "map", precision.numpy() / 100, chosen, pooling)

    def _search(self, bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Average precision in percent and place of the first hit of every query that has one, (Q,) each."""
        if self.gallery == "test":
            return retrieve(normalize(queries), labels, None, None, self.rule)
        return retrieve(normalize(queries), labels, normalize(bank), bank_labels, self.rule)


def retrieve(
    queries: Tensor, labels: Tensor, gallery: Tensor | None, gallery_labels: Tensor | None, rule: str = "step"
) -> tuple[Tensor, Tensor]:
    """Rank the whole gallery for every query by inner product.

    Equal products are ranked with the wrong images first: a collapsed encoder gains nothing from ties. Memory is
    bounded by `SIMILARITIES_PER_BLOCK` (or a query a thread), whatever the number of queries.

    Args:
        queries: (N, D) float32.
        labels: (N,) int64.
        gallery: (M, D) float32, or None for the other queries.
        gallery_labels: (M,) int64, or None.
        rule: As in `average_precision`.

    Returns:
        Average precision in percent, (Q,) float64, and zero-based place of the first hit, (Q,) int64, of the Q queries
        that have an image of their class in the gallery.
    """
    alone = gallery is None or gallery_labels is None
    bank = queries if gallery is None else gallery
    order = (labels if gallery_labels is None else gallery_labels).sort(stable=True).indices
    bank, bank_labels = bank[order], (labels if gallery_labels is None else gallery_labels)[order]
    last = int(max(bank_labels.max(), labels.max())) + 1
    ends = torch.bincount(bank_labels, minlength=last).cumsum(0).tolist()
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))  # where each query lies in the sorted gallery, if it does
    of, own = labels.tolist(), place.tolist() if alone else []

    def rank(block: tuple[int, np.ndarray]) -> list[tuple[float, int]]:
        start, similarity = block
        found = []
        for query, row in enumerate(similarity, start):
            label = of[query]
            begin, end = (ends[label - 1] if label else 0), ends[label]
            if alone:
                row[own[query]] = -np.inf  # the last of the hits, and taken off
            hits = np.sort(row[begin:end])[int(alone) :]
            if not len(hits):
                continue
            wrong = np.sort(np.concatenate([row[:begin], row[end:]]))
            before = len(wrong) - np.searchsorted(wrong, hits, side="left")  # wrong images at least as similar
            ranks = before[::-1] + np.arange(len(hits))
            found.append((100 * average_precision(ranks, rule), int(ranks[0])))
        return found

    found: list[tuple[float, int]] = []
    threads = torch.get_num_threads()
    step = max(threads, SIMILARITIES_PER_BLOCK // len(bank))
    with ThreadPoolExecutor(threads) as pool:  # sorts of NumPy run side by side
        for at in torch.arange(len(queries)).split(step):
            similarity = (queries[at] @ bank.T).numpy()
            share = -(-len(at) // threads)
            blocks = [(int(at[i]), similarity[i : i + share]) for i in range(0, len(at), share)]
            found += [each for block in pool.map(rank, blocks) for each in block]
    precision, first = zip(*found, strict=True) if found else ((), ())
    return torch.tensor(precision, dtype=torch.float64), torch.tensor(first, dtype=torch.int64)


def average_precision(ranks: np.ndarray, rule: str = "step") -> float:
    """Area under precision against recall.

    Args:
        ranks: (P,) zero-based places of all P hits in the ranking, rising.
        rule: "step" takes the precision at every hit; "trapezoid" the mean of those just before and at it.

    Example:
        >>> average_precision(np.array([0, 2, 5])), average_precision(np.array([0, 2, 5]), "trapezoid")
        (0.7222222222222222, 0.6777777777777777)
    """
    # torchmetrics' retrieval_average_precision counts images at similarities of 0 and below as wrong ones, and sorts
    # each query's whole gallery: 7 times slower.
    hits = np.arange(len(ranks))
    at = (hits + 1) / (ranks + 1)
    if rule == "step":
        return float(at.mean())
    before = np.where(ranks > 0, hits / np.maximum(ranks, 1), 1.0)
    return float(((before + at) / 2).mean())

"""Instance retrieval on revisited Oxford and Paris (Radenović et al., CVPR 2018, arXiv:1803.11285), as DINO does it."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.data.targets import Search
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result, name_of
from ssl_bench.evaluations.frozen.descriptors import KINDS, descriptors, thumbnail
from ssl_bench.evaluations.frozen.retrieval import average_precision
from ssl_bench.evaluations.solvers.neighbours import normalize
from ssl_bench.metrics.intervals import mean_metric
from ssl_bench.metrics.metric import Metric
from ssl_bench.utils.bounds import Area, Count, Pixels
from ssl_bench.utils.errors import RunError, UserError, unknown

LEVELS = ("easy", "medium", "hard")


class Landmarks(Evaluator):
    """Mean average precision of queries in a database, with what is neither right nor wrong taken out of the rankings.

    Easy: the easy images are right, the hard ones junk; medium: both are right; hard: the hard ones are right, the easy
    ones junk. Queries without a right image don't count. The area under precision and recall is that of trapezoids.

    Args:
        side: Pixels of the long side to which larger images are reduced.
        scales: At which images are seen besides; descriptors are averaged.
        kind: Descriptor: "cls", "mean" or "cls+gem".
        k: Precision among the first k.

    Raises:
        UserError: A number out of range, or an unknown descriptor.
    """

    version: ClassVar[int] = 1
    task: ClassVar[str] = "retrieval"
    needs: ClassVar[str] = "searches"
    encoder_needs = ("multi_crop",)
    metric_help: ClassVar[dict[str, str]] = {
        "map": "mean average precision at medium difficulty, percent; map_easy, map_hard at the others",
        "precision@k=K": "share of right images among the first K, at medium difficulty, percent",
    }
    poolings = ()

    def __init__(
        self,
        side: Pixels = 512,
        scales: tuple[Area, ...] = (1.0,),
        kind: str = "cls",
        k: tuple[Count, ...] = (1, 5, 10),
    ) -> None:
        self.side, self.scales, self.kind, self.k = side, tuple(scales), kind, tuple(k)
        if kind not in KINDS:
            raise unknown("descriptor", kind, KINDS)
        if not self.scales:
            raise UserError("landmarks: scales must name one at least")

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Rank the training images for every test image.

        Raises:
            UserError: The encoder takes images of one size alone.
            RunError: Features that mean nothing, images that were left out, or no query with a right image.
        """
        network: Any = encoder.copy()
        if not getattr(network, "multi_crop", False):
            raise UserError(
                f"landmarks: {name_of(network)} takes images of one size alone, and these keep their proportions"
            )
        if data.train.skipped:
            raise RunError(
                f"landmarks: {data.train.skipped} images of {data.train.name} are missing: places have moved"
            )
        assert data.test.targets is not None and data.test.targets.searches is not None
        database, queries = (self._described(network, images) for images in (data.train, data.test))
        similarity = (queries @ database.T).numpy()
        searches = data.test.targets.searches
        found: dict[str, list[float]] = {level: [] for level in LEVELS}
        precisions: dict[int, list[float]] = {k: [] for k in self.k}
        for row, search in zip(similarity, searches, strict=True):
            for level in LEVELS:
                ranks = ranked(row, search, level)
                if len(ranks):
                    found[level].append(100 * average_precision(ranks, "trapezoid"))
                if len(ranks) and level == "medium":
                    for k in self.k:  # among those that there are, where the last right one comes sooner
                        first = min(k, int(ranks[-1]) + 1)
                        precisions[k].append(100 * float((ranks < first).sum()) / first)
        if not found["medium"]:
            raise RunError(f"landmarks: no query of {data.test.name} has an image to be found")
        metrics: dict[str, Metric] = {"map": mean_metric(torch.tensor(found["medium"]))}
        metrics |= {f"map_{level}": mean_metric(torch.tensor(found[level])) for level in LEVELS if found[level]}
        metrics |= {f"precision@k={k}": mean_metric(torch.tensor(each)) for k, each in precisions.items()}
        chosen: dict[str, object] = {"queries": {level: len(each) for level, each in found.items()}}
        return Result(metrics, "map", np.array(found["medium"]) / 100, chosen, self.kind, selected=False)

    def _described(self, network: Any, images: Any) -> Tensor:
        """Descriptors (N, D) of length 1."""
        total: Tensor | None = None
        for scale in self.scales:
            prepare = thumbnail(max(network.cell, round(self.side * scale)), network.cell)
            found = F.normalize(descriptors(network, images, self.kind, prepare, range(len(images))), dim=1)
            total = found if total is None else total + found
        assert total is not None
        return normalize(total)


def ranked(similarity: np.ndarray, search: Search, level: str) -> np.ndarray:
    """Places of the right images in the ranking of a query, rising, once its junk is taken out.

    Args:
        similarity: (N,) of the images of the database.
        search: What is where.
        level: Of `LEVELS`.

    Example:
        >>> search = Search(np.array([0]), np.array([2]), np.array([1]))
        >>> similarity = np.array([0.5, 0.9, 0.1, 0.7])
        >>> [ranked(similarity, search, level).tolist() for level in LEVELS]
        [[1], [1, 2], [1]]
    """
    right = {"easy": [search.easy], "medium": [search.easy, search.hard], "hard": [search.hard]}[level]
    junk = {"easy": [search.hard], "medium": [], "hard": [search.easy]}[level]
    order = np.argsort(-similarity, kind="stable")
    order = order[~np.isin(order, np.concatenate([search.junk, *junk]))]
    return np.flatnonzero(np.isin(order, np.concatenate(right)))

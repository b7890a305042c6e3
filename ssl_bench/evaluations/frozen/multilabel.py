"""Several labels an image: a logistic regression for each on frozen features, mean average precision.

The protocol of VOC2007 and COCO in the SSL papers (Goyal et al., ICCV 2019, arXiv:1905.01235, VISSL), with exact
logistic regression instead of linear SVMs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result, at_edge
from ssl_bench.evaluations.frozen.logistic import Logistic
from ssl_bench.evaluations.heads import Heads
from ssl_bench.metrics.ranking import RULES, map_contributions, map_metrics, mean_average_precision
from ssl_bench.utils.bounds import Positive
from ssl_bench.utils.errors import RunError, unknown


class MultiLabel(Evaluator):
    """Mean average precision over labels of the scores that logistic regressions give, one for each label.

    An image has the labels of what its masks or annotations show. Pooling and C, one for all labels, are chosen by
    mean average precision on dev, of heads fitted to fit; those are then fitted to all training images.

    Args:
        C: Inverse strengths of the penalty.
        rule: How average precision is counted; see `metrics.ranking.average_precision`.
        poolings: Features to compare.

    Raises:
        UserError: A number out of range, or an unknown rule.
    """

    version: ClassVar[int] = 1
    task: ClassVar[str] = "multilabel"
    needs: ClassVar[str] = "label sets"
    metric_help: ClassVar[dict[str, str]] = {
        "map": "mean over labels of the average precision over images, percent",
        "ap/LABEL": "average precision of one label, percent",
    }

    def __init__(
        self,
        C: tuple[Positive, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        rule: str = "step",
        poolings: tuple[str, ...] = ("cls", "mean"),
    ) -> None:
        self.C, self.rule, self.poolings = tuple(C), rule, tuple(poolings)
        self.head = Logistic(self.C)
        if rule not in RULES:
            raise unknown("multilabel rule", rule, RULES)

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Choose pooling and C on dev, fit again on all training images, score test once.

        Raises:
            UserError: The encoder has none of the poolings.
            RunError: Features that mean nothing, or no label that some images have and others don't.
        """
        assert data.train.targets is not None
        names = data.train.targets.classes
        train, test = self._labels(data.train), self._labels(data.test)
        kept = [k for k, name in enumerate(names) if name != "background" and 0 < train[:, k].sum() < len(train)]
        kept = [k for k in kept if test[:, k].any()]
        if not kept:
            raise RunError(f"multilabel: no label of {data.train.name} tells its images apart")
        fit, dev = self._labels(data.fit)[:, kept], self._labels(data.dev)[:, kept]
        train, test = train[:, kept], test[:, kept]
        features, on_dev = self.features(encoder, data.fit), self.features(encoder, data.dev)
        tried: dict[tuple[str, float], float] = {}
        unfinished = 0
        for name, x in features.items():
            scores, left = self._scores(x, fit, on_dev[name], self.C)
            unfinished += left
            for c, of in zip(self.C, scores, strict=True):
                tried[name, c] = 100 * mean_average_precision(of, dev, self.rule)
        pooling, c = max(tried, key=tried.__getitem__)
        x, y = self.features(encoder, data.train)[pooling], self.features(encoder, data.test)[pooling]
        (scores,), left = self._scores(x, train, y, [c])
        chosen: dict[str, object] = {
            "pooling": pooling,
            "C": c,
            "C_at_edge": at_edge(c, self.C),
            "dev_map": {f"{name}, C {each:g}": value for (name, each), value in tried.items()},
            "unfinished": unfinished + left,
        }
        metrics = map_metrics(scores, test, tuple(names[k] for k in kept), self.rule)
        return Result(metrics, "map", map_contributions(scores, test, self.rule), chosen, pooling)

    @staticmethod
    def _labels(images: ImageSet) -> np.ndarray:
        assert images.targets is not None
        return np.stack([images.targets.label_set(i) for i in range(len(images))])

    def _scores(self, x: Tensor, labels: np.ndarray, queries: Tensor, C: Sequence[float]) -> tuple[np.ndarray, int]:
        """(len(C), N, L) of queries (N, D), and how many heads were stopped before their minimum."""
        found, unfinished = [], 0
        for own in labels.T:
            if own.all() or not own.any():  # of fit alone
                found.append(torch.full((len(queries), len(C)), float(own.all())))
                continue
            heads, left = self.head.fit(x, torch.from_numpy(own.astype(np.int64)), 2, C)
            found.append(_margins(heads, queries))
            unfinished += left
        return torch.stack(found, 2).permute(1, 0, 2).numpy(), unfinished


def _margins(heads: Heads, queries: Tensor) -> Tensor:
    """(N, H): by how much the label is likelier than not."""
    scores = heads.scores(queries)
    return scores[..., 1] - scores[..., 0]

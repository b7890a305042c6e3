"""An evaluation of yours, ranked like ours.

    ssl-bench evaluate runs/.../encoder.pt --evaluations knn,examples/evaluation.py:NearestMean
    ssl-bench bench quick --evaluations knn,examples/evaluation.py:NearestMean

Choose on ``data.dev``, report on ``data.test``. ``correct`` says of each test image whether it was right: intervals and
paired tests follow from it. Raise ``version`` whenever a number can move.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ssl_bench import Data, Encoder, Evaluator, Result, accuracy_metric


class NearestMean(Evaluator):
    """The class whose mean feature is nearest by cosine, of the pooling that is best on dev."""

    version = 1
    metric_help = {"top1": "accuracy of the nearest class mean, in percent"}

    def __init__(self, *, poolings: tuple[str, ...] = ("cls", "mean")) -> None:
        self.poolings = poolings

    def run(self, encoder: Encoder, data: Data) -> Result:
        fit, dev, test = (self.features(encoder, images) for images in (data.fit, data.dev, data.test))

        def right(pooling: str, features: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
            classes = range(len(data.fit.classes))
            means = torch.stack([fit[pooling][data.fit.labels == label].mean(dim=0) for label in classes])
            return (F.normalize(features[pooling]) @ F.normalize(means).T).argmax(dim=1) == labels

        scores = {pooling: 100 * right(pooling, dev, data.dev.labels).float().mean().item() for pooling in fit}
        best = max(scores, key=lambda pooling: scores[pooling])
        correct = right(best, test, data.test.labels).numpy()
        chosen: dict[str, object] = {"pooling": best, "dev": scores}
        return Result({"top1": accuracy_metric(correct)}, "top1", correct, chosen, best, selected=len(scores) > 1)

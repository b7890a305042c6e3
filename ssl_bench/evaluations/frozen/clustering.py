"""Unsupervised clustering: k-means on frozen features, compared with the classes.

The † rows of iBOT, Table 5 (Zhou et al., ICLR 2022, arXiv:2111.07832); accuracy after the best matching of clusters and
classes as in self-labelling (Asano et al., ICLR 2020, arXiv:1911.05371).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result
from ssl_bench.evaluations.solvers.neighbours import normalize, search
from ssl_bench.metrics.intervals import jackknife_groups, jackknife_metric
from ssl_bench.metrics.metric import Metric, accuracy_metric
from ssl_bench.utils.bounds import Count, Seed
from ssl_bench.utils.errors import RunError, UserError, unknown

FIT_ON = ("train", "test")


class Clustering(Evaluator):
    """Spherical k-means on L2-normalised features; its test clusters are compared with the test labels.

    FAISS k-means from random images, the best of `restarts` by its own objective. By default the centres come from the
    training images and test images go to the nearest one; "test" fits on the test images, as the published numbers do.
    The pooling is chosen by accuracy on dev, with centres from fit (or dev).

    Args:
        clusters: Number of clusters; None is the number of classes. Clusters and classes left over in the matching
            count as wrong.
        fit_on: "train" or "test": where the centres come from. No label is seen in either.
        restarts: Runs of k-means from other images.
        dev_restarts: The same for the choice on dev.
        iterations: Steps of each run.
        poolings: Features to compare.
        seed: Seed of the starting images.

    Raises:
        UserError: A number out of range.
    """

    version: ClassVar[int] = 2
    metric_help: ClassVar[dict[str, str]] = {
        "top1": "accuracy after the best one-to-one matching of clusters and classes (ACC), percent",
        "nmi": "normalised mutual information, arithmetic mean of both entropies, times 100",
        "ari": "adjusted Rand index, times 100",
        "fmi": "Fowlkes-Mallows index, times 100",
    }

    def __init__(
        self,
        clusters: Count | None = None,
        fit_on: str = "train",
        restarts: Count = 10,
        dev_restarts: Count = 3,
        iterations: Count = 25,
        poolings: tuple[str, ...] = ("cls", "mean"),
        seed: Seed = 0,
    ) -> None:
        self.clusters, self.fit_on, self.iterations = clusters, fit_on, iterations
        self.restarts, self.dev_restarts = restarts, dev_restarts
        self.poolings, self.seed = tuple(poolings), seed
        if fit_on not in FIT_ON:
            raise unknown("split to fit clusters on", fit_on, FIT_ON)
        if min(restarts, dev_restarts, iterations, 1 if clusters is None else clusters) < 1:
            raise UserError(
                "clustering: clusters, restarts, dev_restarts and iterations must be at least 1, got "
                f"{clusters}, {restarts}, {dev_restarts} and {iterations}"
            )

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Choose the pooling on dev, cluster, compare with the labels of test.

        Raises:
            UserError: The encoder has none of the poolings.
            RunError: Features that mean nothing, or fewer images than clusters.
        """
        classes = len(data.train.classes)
        k = self.clusters or classes
        fit, dev = self.features(encoder, data.fit), self.features(encoder, data.dev)
        dev_acc: dict[str, float] = {}
        for name in fit:
            clusters, _ = self._cluster(fit[name], dev[name], k, self.dev_restarts)
            dev_acc[name] = 100 * float(matched(data.dev.labels, clusters, classes, k).double().mean())
        pooling = max(dev_acc, key=dev_acc.__getitem__)

        train, test = self.features(encoder, data.train)[pooling], self.features(encoder, data.test)[pooling]
        clusters, objective = self._cluster(train, test, k, self.restarts)
        correct = matched(data.test.labels, clusters, classes, k).numpy()
        metrics = {"top1": accuracy_metric(correct)} | self._agreement(data.test.labels, clusters, classes, k)
        chosen: dict[str, object] = {
            "pooling": pooling,
            "dev_acc": dev_acc,
            "clusters": k,
            "used_clusters": len(clusters.unique()),
            "mean_cosine_to_centre": objective,
        }
        return Result(metrics, "top1", correct, chosen, pooling)

    def _cluster(self, train: Tensor, test: Tensor, k: int, restarts: int) -> tuple[Tensor, float]:
        """Cluster of each test image (N,) int64, and their mean cosine to its centre."""
        queries = normalize(test)
        rows = normalize(train) if self.fit_on == "train" else queries
        centres = kmeans(rows, k, restarts=restarts, iterations=self.iterations, seed=self.seed)
        similarity, index = search(centres, queries, 1)
        return index[:, 0], float(similarity.double().mean())

    def _agreement(self, labels: Tensor, clusters: Tensor, classes: int, k: int) -> dict[str, Metric]:
        """NMI, ARI and FMI with jackknife intervals: groups of images are taken out of one table of counts."""
        groups = jackknife_groups(len(labels), self.seed)
        number = int(groups.max()) + 1
        cells = (groups * classes + labels) * k + clusters
        tables = torch.bincount(cells, minlength=number * classes * k).view(number, classes, k).double()
        whole = tables.sum(0)
        value = agreement(whole)
        left = [agreement(whole - table) for table in tables] if number > 1 else []
        return {
            name: jackknife_metric(100 * value[name], [100 * v[name] for v in left], len(labels), (low, 100.0))
            for name, low in (("nmi", 0.0), ("ari", -50.0), ("fmi", 0.0))  # ARI is at least -1/2
        }


def kmeans(rows: Tensor, k: int, *, restarts: int, iterations: int, seed: int) -> Tensor:
    """Centres (k, D) float32 of length 1 of spherical k-means.

    Args:
        rows: (N, D) float32 of length 1.
        k: Clusters.
        restarts: Runs from other rows, of which the best by its own objective is kept.
        iterations: Steps of each run.
        seed: Seed of the starting rows.

    Raises:
        RunError: Fewer rows than clusters.
    """
    import faiss

    if len(rows) < k:
        raise RunError(f"clustering: {len(rows)} images are fewer than {k} clusters")
    faiss.omp_set_num_threads(torch.get_num_threads())
    run = faiss.Kmeans(
        rows.shape[1],
        k,
        niter=iterations,
        nredo=restarts,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,  # no warning for small sets
        max_points_per_centroid=len(rows),  # all images: FAISS would take a sample of 256 a cluster
    )
    run.train(rows.contiguous().numpy())
    return torch.from_numpy(np.array(run.centroids))


def matched(labels: Tensor, clusters: Tensor, classes: int, k: int) -> Tensor:
    """Which images are right when every cluster stands for at most one class, and the matching is the best there is.

    Args:
        labels: (N,) int64 in [0, classes).
        clusters: (N,) int64 in [0, k).
        classes: Number of classes.
        k: Number of clusters; may differ from `classes`.

    Returns:
        (N,) bool.

    Example:
        >>> matched(torch.tensor([0, 0, 1, 1]), torch.tensor([2, 2, 0, 1]), classes=2, k=3).tolist()
        [True, True, True, False]
    """
    counts = torch.bincount(labels * k + clusters, minlength=classes * k).view(classes, k)
    of_class, of_cluster = linear_sum_assignment(counts.numpy(), maximize=True)
    meaning = torch.full((k,), -1)
    meaning[torch.from_numpy(np.asarray(of_cluster))] = torch.from_numpy(np.asarray(of_class))
    return meaning[clusters] == labels


def agreement(table: Tensor) -> dict[str, float]:
    """NMI (arithmetic mean), ARI and FMI of a table of counts, in the definitions of scikit-learn.

    With n_ij images of class i in cluster j and C(n) = n (n - 1) / 2 pairs: ARI = (sum C(n_ij) - E) / ((sum C(a_i) +
    sum C(b_j)) / 2 - E), E = sum C(a_i) sum C(b_j) / C(n); FMI = sum C(n_ij) / sqrt(sum C(a_i) sum C(b_j));
    NMI = I / ((H(a) + H(b)) / 2).

    Args:
        table: (classes, clusters) float64.

    Example:
        >>> agreement(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        {'nmi': 1.0, 'ari': 1.0, 'fmi': 1.0}
    """
    # torchmetrics has all three, in single precision, from labels instead of counts (25 times slower under the
    # jackknife) and with another NMI where both are one group (0, scikit-learn says 1).
    a, b, n = table.sum(1), table.sum(0), table.sum()

    def pairs(x: Tensor) -> float:
        return float((x * (x - 1)).sum()) / 2

    def entropy(x: Tensor) -> float:
        return float(torch.special.entr(x / n).sum())

    both, one, other, every = pairs(table), pairs(a), pairs(b), pairs(n)
    expected = one * other / every if every else 0.0
    room = (one + other) / 2 - expected
    h_a, h_b = entropy(a), entropy(b)
    information = h_a + h_b - entropy(table)
    return {
        "nmi": min(1.0, max(0.0, 2 * information / (h_a + h_b))) if h_a + h_b > 0 else 1.0,
        "ari": (both - expected) / room if room else 1.0,
        "fmi": both / (one * other) ** 0.5 if one * other else 0.0,
    }

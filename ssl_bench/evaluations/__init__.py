"""Evaluators: an encoder in, numbers out. Protocol files in ``evaluations/`` set their keywords."""

from __future__ import annotations

from ssl_bench.evaluations.clustering import Clustering
from ssl_bench.evaluations.diagnostics import Diagnostics
from ssl_bench.evaluations.evaluator import Evaluator
from ssl_bench.evaluations.factors import Factors
from ssl_bench.evaluations.fewshot import FewShot
from ssl_bench.evaluations.finetune import FineTune
from ssl_bench.evaluations.knn import KNN
from ssl_bench.evaluations.linear import Linear
from ssl_bench.evaluations.logistic import Logistic
from ssl_bench.evaluations.lowshot import LowShot
from ssl_bench.evaluations.probe import Probe
from ssl_bench.evaluations.retrieval import Retrieval
from ssl_bench.evaluations.robustness import Robustness

EVALUATIONS: dict[str, type[Evaluator]] = {
    "knn": KNN,
    "linear": Linear,
    "probe": Probe,
    "logistic": Logistic,
    "fewshot": FewShot,
    "lowshot": LowShot,
    "finetune": FineTune,
    "clustering": Clustering,
    "retrieval": Retrieval,
    "robustness": Robustness,
    "factors": Factors,
    "diagnostics": Diagnostics,
}

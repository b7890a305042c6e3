"""Evaluators: an encoder in, numbers out."""

from __future__ import annotations

from ssl_bench.evaluations.evaluator import Evaluator
from ssl_bench.evaluations.knn import KNN
from ssl_bench.evaluations.linear import Linear

EVALUATIONS: dict[str, type[Evaluator]] = {"knn": KNN, "linear": Linear}

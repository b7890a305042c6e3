"""What authors outside may rely on: it changes on purpose, here, and with a line in the changelog."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ssl_bench
import ssl_bench.nn

ROOT = Path(__file__).parents[1]
SURFACE = """
    Backbone Data Encoder Epochs Evaluator ImageSet Method Metric Result RunError Splits Tokens Training UserError View
    Stage accuracy_metric bench claims compare convert embed evaluate export leaderboard load_data mean_metric pretrain
    reproduce show speed table tune
"""
NN = """
    LARS BatchNorm1d Center DINOHead EMATeacher IBOTHead WeightNormLinear all_mean block_masking cosine ema_update
    gather gather_with_gradient masked_mean mlp no_decay_on_vectors process random_masking temperature_at warmup_cosine
"""


def test_surface_changes_only_on_purpose() -> None:
    assert sorted(ssl_bench.__all__) == sorted(SURFACE.split())
    assert sorted(ssl_bench.nn.__all__) == sorted(NN.split())


@pytest.mark.parametrize("name", SURFACE.split())
def test_every_name_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(ssl_bench, name).__doc__


@pytest.mark.parametrize("name", NN.split())
def test_every_part_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(ssl_bench.nn, name).__doc__


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_import_nothing_else_of_the_package(path: Path) -> None:
    imported = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {node.module for node in imported if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in imported if isinstance(node, ast.Import) for alias in node.names}
    assert {module for module in modules if (module or "").startswith("ssl_bench")} <= {"ssl_bench", "ssl_bench.nn"}

"""A suite that is disturbed again and again ends with the rows of the one that isn't."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from faults.harness import EVALUATORS, KINDS, Bench, all_methods, disturbed

from ssl_bench.evaluations import EVALUATIONS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and their groups killed")


def undisturbed(bench: Bench) -> tuple[dict[str, object], float]:
    """Rows and seconds of a suite without faults."""
    bench.prepare()
    status, seconds = bench.attempt()
    assert status == 0, bench.log()
    assert not bench.leftovers()
    return bench.rows(), seconds


def test_five_faults(tmp_path: Path) -> None:
    bench = Bench(["beit"], ["knn", "finetune"], tmp_path / "suite")
    happened = disturbed(bench, *undisturbed(bench), n=5, seed=0)
    assert happened.total() >= 5 and len(happened) >= 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("methods", "evaluations"), [(all_methods(), ["knn"]), (["mae"], list(EVALUATORS))], ids=["methods", "evaluators"]
)
def test_fifty_faults(methods: list[str], evaluations: list[str], tmp_path: Path) -> None:
    """Together a hundred: over all methods with their teachers, and over all evaluators."""
    bench = Bench(methods, evaluations, tmp_path / "suite")
    happened = disturbed(bench, *undisturbed(bench), n=50, seed=1)
    print(dict(happened))
    assert happened.total() >= 50 and set(happened) == set(KINDS)


def test_the_suites_have_every_evaluator() -> None:
    """Of those that need no more of the images than the suite's have: neither masks nor clips."""
    assert set(EVALUATORS) == {name for name, cls in EVALUATIONS.items() if cls.needs in ("", "labels", "factors")}

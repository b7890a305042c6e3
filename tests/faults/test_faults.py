"""A suite that is disturbed again and again ends with the rows of the one that isn't."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from faults.harness import EVALUATORS, KINDS, Bench, all_methods, disturbed, undisturbed

from ssl_bench.evaluations import EVALUATIONS
from ssl_bench.methods import METHODS, TEACHERS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and their groups killed")


def test_five_faults(tmp_path: Path) -> None:
    bench = Bench(["beit"], ["knn", "finetune"], tmp_path / "suite")
    happened = disturbed(bench, undisturbed(bench), n=5, seed=0)
    assert {fault.kind for fault in happened} == set(KINDS) and len({fault.where for fault in happened}) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("methods", "evaluations"), [(all_methods(), ["knn"]), (["mae"], list(EVALUATORS))], ids=["methods", "evaluators"]
)
def test_fifty_faults(methods: list[str], evaluations: list[str], tmp_path: Path) -> None:
    """Together a hundred: over all methods with their teachers, and over all evaluators."""
    bench = Bench(methods, evaluations, tmp_path / "suite")
    happened = disturbed(bench, undisturbed(bench), n=50, seed=1)
    print(Counter(fault.kind for fault in happened), Counter(fault.where for fault in happened))
    assert len(happened) == 50 and {fault.kind for fault in happened} == set(KINDS)
    wanted = {*methods, *evaluations} | (set(TEACHERS) if len(methods) > 1 else set())
    assert wanted <= {fault.where for fault in happened}


def test_the_suites_have_every_method_teacher_and_evaluator() -> None:
    assert set(EVALUATORS) == set(EVALUATIONS)
    assert set(all_methods()) <= set(METHODS)

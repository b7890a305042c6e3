"""Side by side: what differs, the test, the counts, the classes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ssl_bench.data.datasets
from ssl_bench.commands.compare import compare, disagreement, flatten
from ssl_bench.utils.errors import UserError

A = np.arange(100) < 60
B = np.arange(100) < 40


def said(a: str, b: str, **options: Any) -> str:
    lines: list[str] = []
    compare(a, b, show=lines.append, **options)
    return "\n".join(lines)


def test_two_methods(tmp_path: Path, add_row: Any) -> None:
    add_row("good", 0, A, recipe={"settings": {"mask_ratio": 0.5}})
    add_row("bad", 0, B)
    text = said("good", "bad", rows=tmp_path)
    assert "settings.mask_ratio" in text and "category" not in text
    assert "difference +20.00 points, p = 2.1e-05" in text  # t = 20 / sqrt(20) with 99 degrees of freedom
    assert "one seed of both: chance over the test images alone, of these encoders and not of the methods" in text
    assert "both 40, only good 20, only bad 0, neither 40" in text
    assert "not its class; --data names the data set" in text


@pytest.mark.parametrize("width", [60, 80])
def test_nothing_is_cut(tmp_path: Path, add_row: Any, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    add_row("mae", 0, A, pretraining={"flops": 5475658825728.125}, deviations=["positions are learned " * 9])
    add_row("moco_v3", 0, B, pretraining={"flops": 8033061224448.5}, deviations=["no blur " * 9])
    text = said("mae", "moco_v3", rows=tmp_path)
    assert "5.47566e+12" in text and "8.03306e+12" in text and "…" not in text


def test_two_files(tmp_path: Path, add_row: Any) -> None:
    files = [str(add_row(name, 0, A).path) for name in "ab"]
    text = said(*files)
    assert "difference +0.00 points, p = 1" in text
    assert "Recipe: what differs" in text  # the method


def test_counts_are_means_over_pairs_of_seeds() -> None:
    draws = np.random.default_rng(0)
    a, b = draws.random((2, 50)) < 0.5, draws.random((3, 50)) < 0.6
    pairs = [(x, y) for x in a for y in b]
    expected = [np.mean([f(x, y).sum() for x, y in pairs]) for f in (
        lambda x, y: x & ~y, lambda x, y: ~x & y, lambda x, y: x & y, lambda x, y: ~x & ~y
    )]  # fmt: skip
    assert disagreement(a, b) == pytest.approx(expected)


def test_what_cannot_be_compared(tmp_path: Path, add_row: Any) -> None:
    one = add_row("a", 0, A)
    other = add_row("b", 0, B, evaluation={"version": 99})
    assert "not comparable: other versions" in said(str(one.path), str(other.path))
    other = add_row("b", 0, B, evaluation={"fingerprints": {"test": "c"}})
    assert "not comparable: other images" in said(str(one.path), str(other.path))


def test_without_predictions_intervals(tmp_path: Path, add_row: Any) -> None:
    for name, right in (("a", A), ("b", B)):
        add_row(name, 0, right, "fewshot", predictions=None)
    assert "95 % intervals compared as independent" in said("a", "b", rows=tmp_path)


def test_shares_are_counted_by_who_is_ahead(tmp_path: Path, add_row: Any) -> None:
    add_row("a", 0, np.full(40, 0.5), "fewshot")
    add_row("b", 0, np.repeat([0.5, 0.75], 20), "fewshot")
    text = said("a", "b", rows=tmp_path)
    assert "difference -12.50 points" in text and "share of right predictions: a 0, b 20, neither 20" in text


def test_by_class(tmp_path: Path, add_row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    add_row("good", 0, A)
    add_row("bad", 0, B)
    labels = (np.arange(100) >= 50).astype(int)
    test = SimpleNamespace(fingerprint="b", labels=labels, classes=("cat", "dog", "never"))
    monkeypatch.setattr(ssl_bench.data.datasets, "load", lambda name: SimpleNamespace(test=test))
    text = said("good", "bad", rows=tmp_path, data="shapes")
    assert "good ahead in 2, bad in 0 of 2" in text
    (cat,) = [line.split() for line in text.splitlines() if line.split()[:1] == ["cat"]]
    assert cat == ["cat", "50", "100.0", "80.0", "+20.0", "10", "0"]
    for name in ("good", "bad"):
        add_row(name, 0, A[:40], "robustness")
    assert "no table by class: only 40 of 100 test images" in said("good", "bad", rows=tmp_path, data="shapes")
    test.fingerprint = "other"
    with pytest.raises(UserError, match="not those that"):
        said("good", "bad", rows=tmp_path, data="shapes")


def test_a_method_is_named_by_its_label_or_by_itself(tmp_path: Path, add_row: Any) -> None:
    for name in ("a", "b"):
        add_row(name, 0, A, pretraining={"data": "elsewhere"})
    add_row("c", 0, A)
    assert "b: top1" in said("a", "b", rows=tmp_path)
    add_row("a", 0, B, recipe={"settings": {"mask_ratio": 0.5}})
    with pytest.raises(UserError, match=r"unknown method 'a': .*a \("):
        said("a", "b", rows=tmp_path)


def test_wrong_requests(tmp_path: Path, add_row: Any) -> None:
    add_row("a", 0, A)
    with pytest.raises(UserError, match="unknown method 'c'"):
        said("a", "c", rows=tmp_path)
    with pytest.raises(UserError, match="--rows DIR"):
        said("a", "b")
    add_row("b", 0, A, name="knn")
    with pytest.raises(UserError, match="in common"):
        said("a", "b", rows=tmp_path)


def test_nested_lists_stay_values() -> None:
    assert flatten({"a": {"b": {"c": [1, {"d": 2}]}}}) == {"a.b.c": "[1, {'d': 2}]"}

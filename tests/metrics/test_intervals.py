"""Intervals that a row can hold."""

from __future__ import annotations

import math

import pytest

from ssl_bench.metrics.intervals import LARGEST, jackknife_metric
from ssl_bench.results.rows.schema import ROW
from ssl_bench.utils.schemas import violations


@pytest.mark.parametrize("left_out", [[], [5.0], [-1e150, 1e150]])
@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (-math.inf, 100.0), (0.0, math.inf), (0.0, 100.0)])
def test_a_row_holds_the_interval_of_a_jackknife(left_out: list[float], bounds: tuple[float, float]) -> None:
    """Also where nothing is known of the spread, and no side is bounded."""
    metric = jackknife_metric(5.0, left_out, 3, bounds)
    rule = ROW.rules["properties"]["metrics"]["additionalProperties"]
    assert list(violations(vars(metric), rule)) == []
    assert (metric.low, metric.high) == (max(bounds[0], -LARGEST), min(bounds[1], LARGEST))
    assert metric.low <= metric.value <= metric.high


def test_the_largest_number_is_the_schemas() -> None:
    numbers = ROW.rules["properties"]["metrics"]["additionalProperties"]["properties"]
    for name in ("value", "low", "high"):
        assert (numbers[name]["minimum"], numbers[name]["maximum"]) == (-LARGEST, LARGEST)

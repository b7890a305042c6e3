"""Rows as a DataFrame: columns, dtypes, missing values, what groups seeds, and numbers that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ssl_bench.results import load
from ssl_bench.results.frame import COLUMNS
from ssl_bench.results.rows.row import checksum_of
from ssl_bench.utils.errors import UserError

RIGHT = np.arange(100) < 40


def test_columns_and_dtypes_are_those_documented_also_without_rows(tmp_path: Path, add_row: Any) -> None:
    (tmp_path / "rows").mkdir()
    empty = load(tmp_path)
    add_row("m", 0, RIGHT)
    for frame in (empty, load(tmp_path)):
        assert {name: str(kind) for name, kind in frame.dtypes.items()} == COLUMNS
    assert len(empty) == 0 and isinstance(load(tmp_path).index, pd.RangeIndex)


def test_one_line_for_each_row(tmp_path: Path, add_row: Any) -> None:
    row = add_row("m", 3, RIGHT, flags=["labels"], warnings=["a", "b"])
    (line,) = load(tmp_path).to_dict("records")
    assert (line["id"], line["file"], line["method"], line["seed"]) == (row["id"], row.path.name, "m", 3)
    assert (line["evaluation"], line["metric"], line["headline"], line["task"]) == (
        "linear", "top1", True, "classification",
    )  # fmt: skip
    assert (line["value"], line["low"], line["high"], line["n"]) == (40.0, 37.0, 43.0, 100)
    assert (line["flops"], line["epochs"], line["images_seen"]) == (1e9, 2.0, 1000)
    assert (line["labels"], line["external"], line["warnings"]) == (True, False, "a; b")


def test_every_metric(tmp_path: Path, add_row: Any) -> None:
    for name in "ab":
        add_row(name, 0, RIGHT, metrics={"top5": {"value": 80.0, "n": 100, "low": 70.0, "high": 90.0}})
    frame = load(tmp_path, every_metric=True)
    assert frame.groupby("method")["metric"].agg(list).to_dict() == {"a": ["top1", "top5"], "b": ["top1", "top5"]}
    assert frame["headline"].tolist() == [True, False] * 2 and frame.index.tolist() == [0, 1, 2, 3]


def test_seeds_share_a_recipe_and_other_settings_do_not(tmp_path: Path, add_row: Any) -> None:
    for seed in (0, 1):
        add_row("m", seed, RIGHT)
    add_row("m", 0, RIGHT, recipe={"settings": {"mask_ratio": 0.5}})
    counts = load(tmp_path).groupby("recipe")["seed"].count()
    assert sorted(counts) == [1, 2]


def test_external_weights_have_neither_seed_nor_cost(tmp_path: Path, add_row: Any) -> None:
    add_row("m", 0, RIGHT, recipe=None, flags=["external weights"], pretraining={"data": "unknown"})
    (line,) = load(tmp_path).to_dict("records")
    assert all(pd.isna(line[name]) for name in ("seed", "flops", "images_seen", "pretrained_on")) and line["external"]


def test_teachers_count_as_cost(tmp_path: Path, add_row: Any) -> None:
    teacher = {"method": "dvae", "facts": {}, "wall_seconds": 1.0, "flops": 5e8, "images_seen": 7}
    add_row("m", 0, RIGHT, pretraining={"teachers": {"tokenizer": teacher}})
    (line,) = load(tmp_path).to_dict("records")
    assert (line["flops"], line["images_seen"]) == (1.5e9, 1007)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("pretraining", "flops", 1e39),
        ("pretraining", "flops", float("inf")),
        ("pretraining", "wall_seconds", -1.0),
        ("pretraining", "images_seen", 10**400),
        ("metrics", "top1", {"value": 40.0, "n": 100, "low": 40.0, "high": float("inf")}),
        ("metrics", "top1", {"value": None, "n": 100, "low": 40.0, "high": 40.0}),
        ("metrics", "top1", {"value": "a", "n": 100, "low": 40.0, "high": 40.0}),
        ("metrics", "top1", {"value": 40.0, "n": 0, "low": 40.0, "high": 40.0}),
    ],
)
def test_a_number_out_of_range_is_named(tmp_path: Path, add_row: Any, part: str, key: str, value: Any) -> None:
    """The checksum fits; no formula fails on such a number."""
    add_row("a", 0, RIGHT)
    path = add_row("b", 0, RIGHT).path
    values = json.loads(path.read_text())
    values[part][key] = value
    text = json.dumps({**values, "checksum": checksum_of(values)})
    path.write_text(text.replace("Infinity", "1e999"))
    with pytest.raises(UserError, match=rf"{path.name} is not a row: {part}\.{key}") as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value)

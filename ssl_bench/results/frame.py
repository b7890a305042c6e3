"""Rows as a pandas DataFrame: the public way to the results, and what leaderboards and tables aggregate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from ssl_bench.results.rows.row import Row, read_rows
from ssl_bench.utils.files import content_hash

COLUMNS: dict[str, Any] = {
    "id": "string",  # of the row: 16 hex digits
    "suite": "string",  # that asked for the row; missing where none did
    "method": "string",
    "category": "string",  # of the method; missing for methods that name none
    "backbone": "string",
    "recipe": "string",  # hash of all that made the encoder but the seed, 16 hex digits
    "seed": "Int64",  # of the pre-training; missing for external weights
    "pretrained_on": "string",  # data set; missing without pre-training and where it isn't known
    "images_seen": "Int64",  # in pre-training, those of teachers included; missing for external weights
    "epochs": "float64",  # of pre-training; NaN where it isn't known
    "flops": "float64",  # of pre-training, those of teachers included; NaN for external weights
    "wall_seconds": "float64",  # of pre-training on the device it ran on
    "peak_memory_bytes": "float64",  # of pre-training
    "task": "string",  # classification, segmentation, ...
    "data": "string",  # data set of the evaluation
    "train_fingerprint": "string",  # of its training images
    "test_fingerprint": "string",  # of its test images
    "evaluation": "string",  # name of the protocol
    "evaluator": "string",
    "version": "Int64",  # of the evaluator
    "protocol": "string",  # hash of the evaluator's version, settings and, from outside, its file; 16 hex digits
    "pooling": "string",  # of the features
    "metric": "string",  # its name
    "headline": "bool",  # whether it is the metric that leaderboards show
    "value": "float64",  # percent, for most metrics
    "low": "float64",  # lower end of the 95 % interval over test images (and draws), in the unit of value
    "high": "float64",  # upper end
    "n": "Int64",  # test images
    "labels": "bool",  # whether labels went into the pre-training
    "external": "bool",  # whether data, weights or a teacher are external
    "stale": "bool",  # whether a component is of a newer version now
    "warnings": "string",  # joined with "; "; empty without one
    "file": "string",  # name of the row's file
}

COMPARABLE = ["data", "train_fingerprint", "test_fingerprint"]  # rows in which these differ never share a table


def load(folder: str | Path, *, every_metric: bool = False) -> pd.DataFrame:
    """The rows of a folder as a DataFrame with the columns and dtypes of ``COLUMNS``.

    Args:
        folder: Has ``rows/``.
        every_metric: One line for each metric of each row, instead of one for its headline.

    Returns:
        One line for each row, in the order of the file names.

    Raises:
        UserError: No such folder, or a file in it is not a row.
    """
    return to_frame(read_rows(folder), every_metric=every_metric).reset_index(drop=True)


def to_frame(rows: Sequence[Row], *, every_metric: bool = False) -> pd.DataFrame:
    """Rows as `load` gives them; the index is the position of the row in ``rows``."""
    lines = [(at, *line) for at, row in enumerate(rows) for line in _lines(row, every_metric)]
    index, *columns = zip(*lines, strict=True) if lines else [()] * (1 + len(COLUMNS))
    values = zip(COLUMNS.items(), columns, strict=True)
    return pd.DataFrame({name: pd.Series(value, index, dtype=kind) for (name, kind), value in values})


def _lines(row: Row, every_metric: bool) -> Iterator[list[Any]]:
    """Values in the order of ``COLUMNS``."""
    values, made, evaluation = row.values, row["pretraining"] or {}, row["evaluation"]
    flags, backbone = row["flags"], row["backbone"]["name"]
    spent = [made.get(key) for key in ("epochs", "flops", "wall_seconds", "peak_memory_bytes")]
    spent[1] = spent_on(row, "flops")
    about = [values["id"], values.get("suite"), values["method"], values["category"], backbone, recipe_key(row)]
    about += [seed_of(row), pretrained_on(row), spent_on(row, "images_seen"), *spent]
    prints = evaluation["fingerprints"]
    about += [values["task"], evaluation["data"], prints["train"], prints["test"]]
    about += [evaluation["name"], evaluation["evaluator"], evaluation["version"], protocol_key(row)]
    about += [evaluation["pooling"]]
    marks = ["labels" in flags, is_external(row), row.stale, "; ".join(values.get("warnings", [])), row.path.name]
    headline = values["headline"]
    for name in values["metrics"] if every_metric else (headline,):
        metric = values["metrics"][name]
        numbers = [metric[key] for key in ("value", "low", "high", "n")]
        yield [*about, name, name == headline, *numbers, *marks]


# Of one row -----------------------------------------------------------------------------------------------------------


def seed_of(row: Row) -> int | None:
    """The seed of the pre-training; None for external weights."""
    return (row["recipe"] or {}).get("seed")


def pretrained_on(row: Row) -> str | None:
    """The data set of the pre-training; None without one, and where it isn't known."""
    made = row["pretraining"] or {}
    return made.get("data") if made.get("images_seen") != 0 and made.get("data") != "unknown" else None


def is_external(row: Row) -> bool:
    """Whether data, weights or a teacher are external."""
    return any(flag.startswith("external") for flag in row["flags"])


def spent_on(row: Row, key: str) -> float | None:
    """What the pre-training took, its teachers included; None for external weights.

    Args:
        row: A row.
        key: flops or images_seen.
    """
    made = row["pretraining"]
    if not row["recipe"] or not made or made.get(key) is None:
        return None
    return made[key] + sum(teacher.get(key) or 0 for teacher in (made.get("teachers") or {}).values())


def recipe_key(row: Row) -> str:
    """Hash of all that made the encoder of a row but the seed, 16 hex digits: rows that share it are seeds of one."""
    return quick_hash({key: value for key, value in row["identity"]["encoder"].items() if key != "seed"})[:16]


def protocol_key(row: Row) -> str:
    """Hash of the evaluator's version and settings and, if it is from outside, of its file, 16 hex digits.

    Rows of one name in which it differs measure different things.
    """
    known = row["identity"]["evaluation"]
    source = [known["source"]] if "source" in known else []
    return quick_hash([row["evaluation"]["version"], known["settings"], *source])[:16]


def quick_hash(value: Any) -> str:
    """``content_hash``, remembered: rows repeat the same recipes and settings."""
    return _hash_of(json.dumps(value, sort_keys=True))


@lru_cache(maxsize=65536)
def _hash_of(text: str) -> str:
    return content_hash(json.loads(text))

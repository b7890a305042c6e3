"""What a file must hold before it is used as a row, and what is written as one (JSON Schema, Draft 2020-12)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_bench.utils.schemas import Schema

ROW = Schema(Path(__file__).parent / "row.schema.json", "the row")
LARGEST = 2**22  # bytes of a row; those of our suites have 10 to 40 kB


def violations(row: Any) -> list[str]:
    """What is wrong with a row by itself, one plain sentence each."""
    return ROW.violations(row) or missing_headline(row)


def missing_headline(row: Mapping[str, Any]) -> list[str]:
    """Whether the headline of a row is none of its metrics, which no schema can say."""
    return [] if row["headline"] in row["metrics"] else [f"no metric {row['headline']!r}, its headline"]

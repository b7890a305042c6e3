"""The schema of a row: what a file from elsewhere must hold before anything is made of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ssl_bench.results.rows.row import Row
from ssl_bench.utils.errors import UserError

TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


@contextmanager
def explained(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Where rows don't hold what is asked of them, one line about the first that breaks the schema.

    To look at every row beforehand would double the time of reading them.

    Raises:
        UserError: Naming the file and the field.
    """
    try:
        yield rows
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        for row in rows:
            for text in [*violations(row.values, schema()), *headless(row)]:
                raise UserError(f"{row.path} is not a row: {text}") from error
        raise


def headless(row: Row) -> Iterator[str]:
    """Whether the headline of a row is none of its metrics, which no schema can say."""
    if row["headline"] not in row["metrics"]:
        yield f"no metric {row['headline']!r}, its headline"


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a row."""
    return json.loads((Path(__file__).parent / "row.schema.json").read_text())


def violations(value: Any, rule: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Where a value breaks a JSON schema; knows the keywords that ours uses.

    Example:
        >>> list(violations({"a": "x"}, {"required": ["b"], "properties": {"a": {"type": "number"}}}))
        ["the row has no 'b'", "a is 'x', not of type number"]
    """
    name = where or "the row"
    if "const" in rule and value != rule["const"]:
        yield f"{name} is {_short(value)}, not {rule['const']!r}"
    kinds = [rule["type"]] if isinstance(rule.get("type"), str) else rule.get("type", [])
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{name} is {_short(value)}, not of type {' or '.join(kinds)}"
        return
    if isinstance(value, str) and "pattern" in rule and not re.search(rule["pattern"], value):
        yield f"{name} is {_short(value)}, which doesn't match {rule['pattern']}"
    if isinstance(value, int | float) and not rule.get("minimum", -math.inf) <= value <= rule.get("maximum", math.inf):
        yield f"{name} is {value}, out of range"
    if isinstance(value, list) and "items" in rule:
        for index, item in enumerate(value):
            yield from violations(item, rule["items"], f"{where}[{index}]")
    if "if" in rule and not any(violations(value, rule["if"], where)):
        yield from violations(value, rule["then"], where)
    if isinstance(value, dict):
        yield from (f"{name} has no {key!r}" for key in rule.get("required", ()) if key not in value)
        others = rule.get("additionalProperties", True)
        for key, item in value.items():
            inner = rule.get("properties", {}).get(key, others)
            if inner is False:
                yield f"unknown key {_short(key)}" + (f" in {where}" if where else "")
            elif isinstance(inner, dict):
                yield from violations(item, inner, f"{where}.{key}" if where else str(key))


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or (isinstance(value, float) and math.isnan(value)):
        return False
    return isinstance(value, TYPES[kind])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"

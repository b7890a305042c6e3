"""The schema of a row (JSON Schema, Draft 2020-12): what a file must hold before it is used."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

from ssl_bench.results.rows.row import Row
from ssl_bench.utils.errors import UserError


@contextmanager
def explained(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Code that takes rows as valid: where one isn't, its failure becomes one line about the first that isn't.

    To validate a row takes 2 ms, to read it 0.2 ms: rows are validated only after something has failed.

    Raises:
        UserError: Naming the file and the field.
    """
    try:
        yield rows
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError) as error:
        require_valid(rows, error)
        raise


def require_valid(rows: Sequence[Row], cause: BaseException | None = None) -> None:
    """Validate rows one by one.

    Raises:
        UserError: Naming the file and the field of the first row that breaks the schema.
    """
    for row in rows:
        for text in [*violations(row.values), *missing_headline(row)]:
            raise UserError(f"{row.path} is not a row: {text}") from cause


def missing_headline(row: Row) -> Iterator[str]:
    """Whether the headline of a row is none of its metrics, which no schema can say."""
    if row["headline"] not in row["metrics"]:
        yield f"no metric {row['headline']!r}, its headline"


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a row."""
    return json.loads((Path(__file__).parent / "row.schema.json").read_text())


def violations(value: Any, rule: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Where a value breaks a JSON schema, and which of its numbers are not finite; one plain sentence each.

    Args:
        value: Of `json.loads`.
        rule: The schema; that of a row when left out.

    Example:
        >>> list(violations({"a": "x"}, {"required": ["b"], "properties": {"a": {"type": "number"}}}))
        ["the row has no 'b'", "a is 'x', not of type number"]
    """
    validator = _row_validator() if rule is None else _Validator(rule)
    for error in validator.iter_errors(value):
        yield from _sentences(error)
    yield from (f"{name} is {number}, not a finite number" for name, number in _not_finite(value))


# Python's bool is an int and its 1.0 is integral; in a row neither is an integer.
_Validator: type[Validator] = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)


@cache
def _row_validator() -> Validator:
    return _Validator(schema())


def _sentences(error: ValidationError) -> Iterator[str]:
    where, limit, value = _field(error.absolute_path), cast(Any, error.validator_value), cast(Any, error.instance)
    start = f"{where or 'the row'} is {_short(value)}"
    match error.validator:
        case "type":
            yield f"{start}, not of type {limit if isinstance(limit, str) else ' or '.join(limit)}"
        case "required":
            yield f"{where or 'the row'} has no {error.message.removesuffix(' is a required property')}"
        case "additionalProperties" if limit is False:
            known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
            for key in value:
                if key not in known:
                    yield f"unknown key {_short(key)}" + (f" in {where}" if where else "")
        case "const":
            yield f"{start}, not {limit!r}"
        case "pattern":
            yield f"{start}, which doesn't match {limit}"
        case "minimum":
            yield f"{start}; it must be at least {limit:g}"
        case "maximum":
            yield f"{start}; it must be at most {limit:g}"
        case _:
            yield f"{where or 'the row'}: {error.message[:200]}"


def _field(path: Sequence[str | int]) -> str:
    """The name of a field: "metrics.top1.value", "flags[0]"."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def _not_finite(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str, float]]:
    """Numbers that JSON can't hold, and those too large for a float (1e999), also where the schema allows anything."""
    if isinstance(value, float) and not math.isfinite(value):
        yield _field(path) or "the row", value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, (*path, str(key)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _not_finite(item, (*path, index))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"

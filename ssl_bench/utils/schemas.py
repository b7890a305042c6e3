"""JSON schemas (Draft 2020-12): what a file must hold before it is used, in plain sentences where it doesn't.

``fastjsonschema`` makes code of a schema, which validates a value ten times as fast as ``jsonschema``; that one says
what is wrong with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import fastjsonschema
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

DEEPEST = 64  # values within values
TOO_DEEP = "is nested too deeply"


class Schema:
    """A schema in a file.

    Args:
        path: The file.
        what: What it describes, for errors: "the row".
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what

    @property
    def rules(self) -> dict[str, Any]:
        """The schema itself."""
        return _read(self.path)

    def accepts(self, value: Any) -> bool:
        """Whether a value of ``json.loads`` keeps to it; quick, and takes 1.0 for an integer."""
        if next(_strange(value, self.what), ""):
            return False
        try:
            _compiled(self.path)(value)
        except fastjsonschema.JsonSchemaValueException:
            return False
        return True

    def violations(self, value: Any) -> list[str]:
        """What a value of ``json.loads`` breaks, one sentence each."""
        return list(violations(value, self.rules, self.what))


@cache
def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@cache
def _compiled(path: Path) -> Callable[[Any], Any]:
    # The newest draft that fastjsonschema knows; of the keywords used here, none has changed since.
    return fastjsonschema.compile({**_read(path), "$schema": "http://json-schema.org/draft-07/schema#"})


def violations(value: Any, rules: Mapping[str, Any], what: str = "the row") -> Iterator[str]:
    """Where a value breaks a JSON schema, and what of it JSON can't hold; one plain sentence each.

    Example:
        >>> list(violations({"a": "x"}, {"required": ["b"], "properties": {"a": {"type": "number"}}}))
        ["the row has no 'b'", "a is 'x', not of type number"]
    """
    strange = list(_strange(value, what))
    if not any(text.endswith(TOO_DEEP) for text in strange):  # which no text can be made of
        for error in _Validator(rules).iter_errors(value):
            yield from _sentences(error, what)
    yield from strange


# Python's bool is an int and its 1.0 is integral; in a row neither is an integer.
_Validator: type[Validator] = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)


def _sentences(error: ValidationError, what: str) -> Iterator[str]:
    where, limit, value = field_name(error.absolute_path), cast(Any, error.validator_value), cast(Any, error.instance)
    start = f"{where or what} is {_short(value)}"
    match error.validator:
        case "type":
            yield f"{start}, not of type {limit if isinstance(limit, str) else ' or '.join(limit)}"
        case "required":
            yield f"{where or what} has no {error.message.removesuffix(' is a required property')}"
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
            yield f"{where or what}: {error.message[:200]}"


def field_name(path: Sequence[str | int]) -> str:
    """The name of a field in one line: "metrics.top1.value", "flags[0]".

    Example:
        >>> field_name(["flags", 0]), field_name(["a", "two\\nlines"])
        ('flags[0]', 'a.two\\\\nlines')
    """
    return "".join(f"[{key}]" if isinstance(key, int) else f".{_printable(key)}" for key in path).removeprefix(".")


def _printable(key: str) -> str:
    return key if key.isprintable() else ascii(key)[1:-1]


def _strange(value: Any, what: str, path: tuple[str | int, ...] = ()) -> Iterator[str]:
    """What no schema says: numbers that JSON or 64 bits can't hold, texts that are none, and too deep nesting."""
    kind = type(value)
    if kind is str:
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            yield f"{field_name(path) or what} is {ascii(value)[:60]}, which is no text"
    elif kind is float:
        if not math.isfinite(value):
            yield f"{field_name(path) or what} is {value}, not a finite number"
    elif kind is int:
        if not -(2**63) <= value < 2**63:
            yield f"{field_name(path) or what} is {_short(value)}, a number of more than 64 bits"
    elif kind is dict or kind is list:
        if len(path) >= DEEPEST:
            yield f"{field_name(path)[:60]}... {TOO_DEEP}"
            return
        for key, item in value.items() if kind is dict else enumerate(value):
            yield from _strange(item, what, (*path, key))
            if kind is dict and isinstance(key, str) and not key.isascii():
                yield from _strange(key, what, path)
    elif value is not None and kind is not bool:
        yield f"{field_name(path) or what} is of type {kind.__name__}, which JSON doesn't have"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"

"""YAML files and command-line values to typed keywords of a constructor; jsonargparse does the typing."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ssl_bench.utils.errors import UserError, unknown


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping.

    Raises:
        UserError: Not readable, not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, found {type(content).__name__}")
    return content


def parse_class(cls: type, values: Mapping[str, Any], origin: str) -> Namespace:
    """Keywords of a class's constructor, typed by its annotations: those given, and the defaults of the others.

    Args:
        cls: The class.
        values: Keyword -> value.
        origin: Where they were written.

    Raises:
        UserError: As of ``parse_values``.
    """
    return parse_values(_parser(cls), {key: (value, origin) for key, value in values.items()})


@cache
def _parser(cls: type) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(cls)
    return parser


def parse_values(parser: ArgumentParser, values: Mapping[str, tuple[Any, str]]) -> Namespace:
    """Type values with a parser.

    Args:
        parser: Knows the keys and their types.
        values: key -> (value, where it was written).

    Raises:
        UserError: An unknown key or a value of the wrong type, with where it was written and what is valid.
    """
    valid = [action.dest for action in parser._actions if "." not in action.dest]
    for key, (value, origin) in values.items():
        if key not in valid:
            raise UserError(f"{origin}: {unknown('key', key, valid)}")
        text = value if isinstance(value, str) else json.dumps(value)
        try:
            parser.parse_args([f"--{key}={text}"])
        except (ArgumentError, ValueError, TypeError) as error:
            raise UserError(f"{origin}: {key} is {text}; it must be {_expected(parser, key)}") from error
    return parser.parse_args(
        [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, (value, _) in values.items()]
    )


def _expected(parser: ArgumentParser, key: str) -> str:
    """What a key accepts, in words: "a float", "one of adamw, sgd, lars"."""
    action: Any = next(a for a in parser._actions if a.dest == key)
    annotation = getattr(action, "_typehint", None) or action.type
    if getattr(annotation, "__args__", None) and str(annotation).startswith("typing.Literal"):
        return "one of " + ", ".join(str(a) for a in annotation.__args__)
    return f"of type {getattr(annotation, '__name__', None) if inspect.isclass(annotation) else annotation}"


def parse_overrides(pairs: Sequence[str]) -> dict[str, str]:
    """``key=value`` strings to a dict.

    Example:
        >>> parse_overrides(["mask_ratio=0.5"])
        {'mask_ratio': '0.5'}
    """
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set {pair!r}: write it as key=value")
        overrides[key] = value
    return overrides

"""YAML files and command-line values to typed keywords of a constructor; jsonargparse does the typing."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ssl_bench.utils.bounds import misfit, types_of, unbound
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.utils.files import read_regular

LARGEST = 2**20  # bytes of a YAML file


class _Loader(yaml.SafeLoader):
    """YAML as JSON has it: mappings, lists, texts, numbers, true, false, null. A date stays a text."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse an alias: a few of them could stand for billions of values, or for the value they are in."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(
                None, None, "aliases (*name) are not read", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_OTHERS = ("binary", "timestamp", "set", "omap", "pairs")
_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if str(tag).rpartition(":")[2] not in _OTHERS
}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping, of the kinds of values that JSON has.

    Raises:
        UserError: No regular file of at most 1 MB, not readable, not YAML, of other values, or not a mapping.
    """
    try:
        content = yaml.load(read_regular(path, LARGEST).decode(), _Loader)
    except FileNotFoundError as error:
        raise UserError(f"{path}: it is not a file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        why = str(getattr(error, "problem", error)).partition("\n")[0]
        raise UserError(f"{path}{where}: not valid YAML: {why}") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply") from error
    except (ValueError, TypeError) as error:  # a number of thousands of digits, a key that is a list
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, found {type(content).__name__}")
    if wrong := [key for key in content if not isinstance(key, str)]:
        raise UserError(f"{path}: the key {wrong[0]!r} is not a text")
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
    return parse_values(_parser(cls), {key: (value, origin) for key, value in values.items()}, types_of(cls))


@cache
def _parser(cls: type) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(cls)
    return parser


def parse_values(parser: ArgumentParser, values: Mapping[str, tuple[Any, str]], types: Mapping[str, Any]) -> Namespace:
    """Type values with a parser.

    Args:
        parser: Knows the keys and their types.
        values: key -> (value, where it was written).
        types: The types of the keys, with their bounds (``utils.bounds``).

    Raises:
        UserError: An unknown key, or a value of the wrong type or out of bounds, with where it was written and what is
            valid.
    """
    valid = [key for key, _ in parser.get_defaults().items() if "." not in key]
    for key, (value, origin) in values.items():
        if key not in valid:
            raise UserError(f"{origin}: {unknown('key', key, valid)}")
        text = value if isinstance(value, str) else json.dumps(value)
        hint = types.get(key, Any)
        try:
            parsed = parser.parse_args([f"--{key}={text}"])[key]
        except (ArgumentError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(f"{origin}: {key} is {shortened(text)}; it must be {_expected(unbound(hint))}") from error
        if wrong := misfit(hint, parsed):
            raise UserError(f"{origin}: {key} is {shortened(text)}; it must be {wrong}")
    return parser.parse_args(
        [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, (value, _) in values.items()]
    )


def _expected(hint: Any) -> str:
    """What a key accepts, in words.

    Example:
        >>> _expected(Literal["adamw", "sgd"]), _expected(float), _expected(tuple[float, ...] | None)
        ('one of adamw, sgd', 'of type float', 'of type tuple[float, ...] | None')
    """
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    return f"of type {hint.__name__ if inspect.isclass(hint) else hint}"


def shortened(text: str, most: int = 100) -> str:
    """A text of others for an error: one line, not longer than a screen's.

    Example:
        >>> shortened("9" * 5000, most=5)
        '99999...'
    """
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."


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

"""Protocols: from a file to an evaluator."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ssl_bench.config.parsing import parse_class, read_yaml
from ssl_bench.evaluations import EVALUATIONS
from ssl_bench.evaluations.evaluator import Evaluator
from ssl_bench.evaluations.trial import try_out
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.utils.references import is_reference, look_up
from ssl_bench.utils.shipped import find_yaml

LACKING = {  # what a class from outside must state, and an example
    "version": "version = 1, raised whenever a number can move",
    "metric_help": 'metric_help = {"top1": "accuracy in percent"}, a line for each number',
    "poolings": 'poolings = ("cls", "mean"), the features that it uses',
}


def tried_evaluator(given: str | type[Evaluator] | Evaluator) -> tuple[str, Evaluator]:
    """``named_evaluator``; one from outside is tried on drawn features first.

    Raises:
        UserError: Also of ``evaluations.trial.try_out``.
    """
    name, evaluator = named_evaluator(given)
    try_out(given if isinstance(given, str) else name, evaluator)
    return name, evaluator


def named_evaluator(given: str | type[Evaluator] | Evaluator) -> tuple[str, Evaluator]:
    """An evaluator and its name in tables.

    Args:
        given: A shipped protocol, a YAML file, ``file.py:Class`` with the class's defaults, or an evaluator or a class.

    Raises:
        UserError: See ``load_evaluator``; or a class that lacks what every evaluator states.
    """
    if isinstance(given, str):
        evaluator = load_evaluator(given)
        return given.rpartition(":")[2] if is_reference(given) else Path(given).stem, evaluator
    evaluator = given if isinstance(given, Evaluator) else _of_class(given, given.__name__)
    return type(evaluator).__name__, evaluator


def named_evaluators(
    given: Iterable[str | type[Evaluator] | Evaluator],
    load: Callable[[str | type[Evaluator] | Evaluator], tuple[str, Evaluator]] = named_evaluator,
) -> dict[str, Evaluator]:
    """Evaluators by their names in tables.

    Args:
        given: As of ``named_evaluator``.
        load: It, or ``tried_evaluator``.

    Raises:
        UserError: Also where two have one name: a table could not tell them apart.
    """
    found: dict[str, Evaluator] = {}
    places: dict[str, object] = {}
    for each in given:
        name, evaluator = load(each)
        if places.setdefault(name, each) != each:
            both = f": {places[name]} and {each}" if isinstance(each, str) else ""
            raise UserError(f"two evaluations are called {name!r}{both}; a table can't tell them apart: rename one")
        found[name] = evaluator
    return found


def load_evaluator(name: str) -> Evaluator:
    """The evaluator of a protocol, given as a shipped name, a YAML file or ``file.py:Class``.

    Raises:
        UserError: Unknown name or key, or a value of the wrong type or out of range; it names the file.
    """
    if is_reference(name):
        return _of_class(look_up(name, "evaluator class", _is_evaluator)[1], name)
    path = find_yaml("evaluations", name)
    settings = read_yaml(path)
    kind, deviations = settings.pop("evaluation", None), settings.pop("deviations", [])
    if not isinstance(kind, str) or kind not in EVALUATIONS:
        raise UserError(f"{path}: {unknown('evaluation', kind, EVALUATIONS)}")
    if not (isinstance(deviations, list) and all(isinstance(text, str) and text for text in deviations)):
        raise UserError(f"{path}: deviations is {deviations!r}; it must be a list of sentences")
    cls: Any = EVALUATIONS[kind]
    typed = parse_class(cls, settings, str(path))
    try:
        evaluator: Evaluator = cls(**{key: typed[key] for key in settings})
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"{path}: {error}") from error
    evaluator.deviations = tuple(deviations)
    return evaluator


def _is_evaluator(it: Any) -> bool:
    return inspect.isclass(it) and issubclass(it, Evaluator) and it is not Evaluator


def _of_class(cls: Any, name: str) -> Evaluator:
    """An evaluator from outside, at its defaults."""
    missing = [key for key in LACKING if not hasattr(cls, key)]
    try:
        evaluator: Evaluator = cls()
    except TypeError as error:
        raise UserError(f"evaluator {name}: {error}; every keyword needs a default") from error
    missing = [key for key in missing if not hasattr(evaluator, key)]
    if "metric_help" not in missing and not evaluator.metric_help:
        raise UserError(f"evaluator {name}: its metric_help is empty; it names the metrics, one of them the headline")
    if missing:
        examples = "; ".join(LACKING[key] for key in missing)
        raise UserError(f"evaluator {name} has no {', '.join(missing)}: write {examples}")
    return evaluator

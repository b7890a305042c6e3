"""Protocols: from a file to an evaluator."""

from __future__ import annotations

from typing import Any

from ssl_bench.config.parsing import parse_class, read_yaml
from ssl_bench.evaluations import EVALUATIONS
from ssl_bench.evaluations.evaluator import Evaluator
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.utils.shipped import find_yaml


def load_evaluator(name: str) -> Evaluator:
    """The evaluator of a protocol, given as a shipped name or a YAML file.

    Raises:
        UserError: Unknown name or key, or a value of the wrong type or out of range; it names the file.
    """
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

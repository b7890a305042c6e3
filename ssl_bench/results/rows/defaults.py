"""Whether what a row had by default is still the default of its versions."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from ssl_bench.backbones import family_of, options_for
from ssl_bench.evaluations import EVALUATIONS
from ssl_bench.methods import METHODS, TEACHERS
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.identity import defaults_of, differing
from ssl_bench.utils.versions import current_version


def changed_defaults(row: Mapping[str, Any]) -> Iterator[str]:
    """Each value that a row had by default and that is another one today, though no version rose; in words.

    An identity leaves such values out: the version of their component stands for them, so that a run with the new
    default would pass for the old one. Rows of older versions are stale and not looked at, nor is what comes from
    outside the package.

    Args:
        row: One whose parts agree (``contradiction``).
    """
    made, evaluated = row["identity"]["encoder"], row["identity"]["evaluation"]
    if row["recipe"]:  # external weights have no defaults
        yield from _of_recipe(made, row["recipe"])
    evaluator = evaluated["evaluator"]
    cls: Any = EVALUATIONS.get(evaluator)
    if cls is not None and _is_current(evaluated, f"evaluator {evaluator}"):
        stated = row["evaluation"]["settings"]
        needed = inspect.signature(cls).parameters.keys() - defaults_of(cls).keys()
        with contextlib.suppress(UserError, KeyError, TypeError, ValueError):  # not the values of a run of ours
            today = cls(**{key: stated[key] for key in needed}).settings()  # a single rate is a list there
            yield from _moved(evaluated["settings"], stated, today, f"evaluator {evaluator}")


def _of_recipe(made: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[str]:
    name = made["method"]
    cls = (METHODS | TEACHERS).get(name)
    if cls is None or not _is_current(made, f"method {name}"):
        return
    settings = {key: value for key, value in recipe["settings"].items() if key not in cls.teachers}
    yield from _moved(made["settings"], settings, defaults_of(cls), f"method {name}")
    with contextlib.suppress(UserError):  # a backbone from outside
        family = family_of(str(recipe["backbone"]["name"]))
        if _is_current(made, f"backbone {family.family}"):
            options = defaults_of(family) | options_for(family, cls.backbone_options)
            yield from _moved(made["backbone"], recipe["backbone"], options, f"backbone {family.family}")
    if _is_current(made, "training"):
        training = dataclasses.asdict(cls.defaults)
        yield from _moved(made["training"], recipe["training"], training, f"the training of method {name}")
    for keyword, teacher in (recipe.get("teachers") or {}).items():
        yield from _of_recipe(made["teachers"][keyword], teacher)


def _is_current(made: Mapping[str, Any], component: str) -> bool:
    """Whether a part of an identity was made by today's version of one of our components."""
    return "source" not in made and made["versions"].get(component) == current_version(component)


def _moved(
    identity: Mapping[str, Any], stated: Mapping[str, Any], defaults: Mapping[str, Any], component: str
) -> Iterator[str]:
    for key, value in stated.items():
        if key not in identity and key in defaults and differing({key: value}, defaults):
            yield (
                f"{key} of {component} was {value!r} by default and is {defaults[key]!r} today: "
                "a default changed without a version"
            )

"""Whether a row is true to its identity: its id, its names, its versions and its settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ssl_bench.utils.identity import identify, merged_versions


def contradiction(row: Mapping[str, Any]) -> str:
    """How a row's id, names, versions or settings contradict one another; empty where they don't.

    Settings that the identity leaves out are the defaults of their version: ``ssl-bench check`` looks at those.
    """
    identifier = identify(row["identity"])
    if identifier != row["id"]:
        return f"its id should be {identifier}: it doesn't follow from its identity"
    try:
        return next(_contradictions(row), "")
    except KeyError as error:  # what is missing of an identity is no field that every row has
        return f"its identity doesn't say {error}"
    except (AttributeError, TypeError) as error:
        return f"its identity and its recipe are of other types: {error}"


def _contradictions(row: Mapping[str, Any]) -> Iterator[str]:
    made, evaluated, recipe = row["identity"]["encoder"], row["identity"]["evaluation"], row["recipe"]
    if recipe:
        names = (recipe["method"].rpartition(":")[2], recipe["backbone"]["name"])  # of package.module:Class the class
        said = (row["method"], row["backbone"]["name"])
        if names != said:
            yield f"it says {said[0]!r} on {said[1]!r}, its recipe {names[0]!r} on {names[1]!r}"
        yield from _against_recipe(made, recipe, "recipe")
        yield from _missing({"fingerprint": made["images"]}, row["pretraining"] or {}, "pretraining")
    else:
        yield from _missing({"sha256": made["weights"]}, row["weights"], "weights")
        yield from _missing(made["backbone"] | {"input": made["input"]}, row["backbone"], "backbone")
    stated = row["evaluation"]
    version = evaluated["versions"].get(f"evaluator {evaluated['evaluator']}")
    named = {"name": evaluated["name"], "evaluator": evaluated["evaluator"], "version": version}
    yield from _missing(named | {"fingerprints": evaluated["images"]}, stated, "evaluation")
    yield from _missing(evaluated["settings"], stated["settings"], "evaluation.settings")
    if merged_versions(row["identity"]) != row["versions"]:
        yield "its versions are not those of its identity"


def _against_recipe(made: Mapping[str, Any], recipe: Mapping[str, Any], where: str) -> Iterator[str]:
    name = recipe["method"].rpartition(":")[2]
    yield from _missing({"method": made["method"], "seed": made["seed"]}, {**recipe, "method": name}, where)
    for part in ("settings", "backbone", "training"):
        yield from _missing(made[part], recipe[part], f"{where}.{part}")
    for keyword, teacher in (recipe.get("teachers") or {}).items():
        yield from _against_recipe(made["teachers"][keyword], teacher, f"{where}.teachers.{keyword}")


def _missing(identity: Mapping[str, Any], stated: Mapping[str, Any], where: str) -> Iterator[str]:
    """Each value of a part of the identity that isn't in the part of the row that should say it too."""
    for key, value in identity.items():
        if key not in stated or stated[key] != value:
            said = repr(stated[key]) if key in stated else "nothing"
            yield f"its identity says {key} {value!r}, its {where} says {said}"

"""Recipes, protocols, suites and tables that travel with the package."""

from __future__ import annotations

from pathlib import Path

from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.utils.files import PACKAGE

FACTS = "method.yaml"  # lies among the recipes of a method and is none


def shipped(kind: str) -> Path:
    """The folder of recipes ("methods"), protocols ("evaluations") or suites ("results").

    A wheel carries them inside the package, a checkout keeps them at its root.
    """
    inside = PACKAGE / "_shipped" / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


def recipe_names(method: str) -> list[str]:
    """Names of the shipped recipes of a method."""
    return sorted(p.stem for p in (shipped("methods") / method).glob("*.yaml") if p.name != FACTS)


def find_yaml(kind: str, name: str, filename: str = "{}.yaml") -> Path:
    """The file of a recipe, protocol or suite, given as a path or as a shipped name.

    Args:
        kind: A path below the project root: "methods/mae", "evaluations", "results".
        name: A file that exists, or a shipped name.
        filename: How a shipped name becomes a path below ``kind``.

    Raises:
        UserError: Neither; the message lists the shipped names.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"no such file: {name}")
        return path
    folder = shipped(kind)
    path = folder / filename.format(name)
    if not path.is_file() or path.name == FACTS:
        before, after = filename.split("{}")
        found = [p for p in folder.glob(filename.format("*")) if p.name != FACTS]
        names = [str(p.relative_to(folder))[len(before) : -len(after)] for p in found]
        raise unknown({"evaluations": "evaluation", "results": "suite"}.get(kind, f"recipe of {kind}"), name, names)
    return path

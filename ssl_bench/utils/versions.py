"""Today's version of a component, read from the source, so that whoever only reads rows doesn't wait for torch.

A component is named by its kind and, where there are several, its name: "method mae", "backbone vit", "evaluator knn",
"data shapes", "teacher dvae", and the engines that all share: "views", "training", "features".
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

from ssl_bench.utils.files import PACKAGE

# Kind of component: the modules and the names of the dict literals, name -> class or number, that list it.
REGISTRIES = {
    "method": (("methods", "METHODS"), ("methods", "TEACHERS")),
    "evaluator": (("evaluations", "EVALUATIONS"),),
    "backbone": (("backbones", "BACKBONES"),),
    "teacher": (("teachers", "VERSIONS"),),
    "data": (("data", "VERSIONS"),),
}
ENGINES = {"views": "views", "training": "training", "features": "evaluations.frozen_encoder"}


@cache
def current_version(component: str) -> int | None:
    """The version that a component has today; None for one that this package doesn't have.

    Example:
        >>> current_version("views") >= 1, current_version("method mae") >= 1, current_version("method of mine")
        (True, True, None)
    """
    kind, _, name = component.partition(" ")
    if component in ENGINES:
        return _number(_assigned(ENGINES[component], "VERSION"))
    for module, registry in REGISTRIES.get(kind, ()):
        listed = _assigned(module, registry)
        assert isinstance(listed, ast.Dict), f"{registry} of {module} must be a dict literal"
        for key, value in zip(listed.keys, listed.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == name:
                return _class_version(module, value.id) if isinstance(value, ast.Name) else _number(value)
    return None


def outdated(versions: dict[str, int]) -> list[str]:
    """Which of the stored versions are older than today's, in words: "method mae 1, now 2"."""
    today = {component: current_version(component) for component in versions}
    return [f"{name} {versions[name]}, now {now}" for name, now in today.items() if now and versions[name] < now]


def _class_version(module: str, name: str) -> int | None:
    """``version`` in the body of a class, or of the first base that has one."""
    for node in _module(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            found = _value(node.body, "version")
            if found is not None:
                return _number(found)
            bases = (_class_version(module, base.id) for base in node.bases if isinstance(base, ast.Name))
            return next((version for version in bases if version is not None), None)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ssl_bench."):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _class_version((node.module or "").removeprefix("ssl_bench."), alias.name)
    return None


def _assigned(module: str, name: str) -> ast.expr | None:
    return _value(_module(module).body, name)


def _value(body: list[ast.stmt], name: str) -> ast.expr | None:
    for target, value in _assignments(body):
        if isinstance(target, ast.Name) and target.id == name:
            return value
    return None


def _assignments(body: list[ast.stmt]) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    for node in body:
        if isinstance(node, ast.Assign):
            yield node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign):
            yield node.target, node.value


def _number(value: ast.expr | None) -> int:
    assert isinstance(value, ast.Constant) and isinstance(value.value, int), "a version is a whole number"
    return value.value


@cache
def _module(name: str) -> ast.Module:
    path = PACKAGE / name.replace(".", "/")
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())

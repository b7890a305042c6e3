"""What components state of themselves, read from their source, so that lists and tables don't wait for torch.

A component is named by its kind and, where there are several, its name: "method mae", "backbone vit", "evaluator knn",
"data shapes", "teacher dvae", and the engines that all share: "views", "training", "features".
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

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
    if component in ENGINES:
        return _number(_assigned(ENGINES[component], "VERSION"))
    return stated(component, "version")


@cache
def stated(component: str, attribute: str) -> Any:
    """A plain value in the body of a component's class, or of the first base that has it; None without one.

    Example:
        >>> stated("method mae", "paper"), stated("method raw_pixels", "category"), stated("method of mine", "paper")
        ('He et al. 2022, arXiv 2111.06377', 'baseline', None)
    """
    kind, _, name = component.partition(" ")
    for module, registry in REGISTRIES.get(kind, ()):
        if name in (listed := _listed(module, registry)):
            value = listed[name]
            found = _class_value(module, value.id, attribute) if isinstance(value, ast.Name) else value
            return None if found is None else ast.literal_eval(found)
    return None


def returned(component: str, method: str) -> Any:
    """What a class method without arguments returns that needs nothing but plain constants of its module.

    Example:
        >>> returned("backbone pixels", "patterns")
        {'pixels_{IMAGE}': {'width': 3, 'blocks': 0}}
    """
    kind, _, name = component.partition(" ")
    registry = REGISTRIES[kind][0]
    cls = _listed(*registry)[name]
    assert isinstance(cls, ast.Name)
    imported = next(
        node.module
        for node in _module(registry[0]).body
        if isinstance(node, ast.ImportFrom) and node.module and cls.id in [alias.name for alias in node.names]
    )
    body = _module(imported.removeprefix("ssl_bench.")).body
    classes = (node for node in body if isinstance(node, ast.ClassDef) and node.name == cls.id)
    found = next(node for node in next(classes).body if isinstance(node, ast.FunctionDef) and node.name == method)
    space: dict[str, Any] = {}
    for target, value in _assignments(body):
        with contextlib.suppress(ValueError, TypeError):
            if isinstance(target, ast.Name) and value is not None:
                space[target.id] = ast.literal_eval(value)
    alone = ast.FunctionDef(**{**dict(ast.iter_fields(found)), "decorator_list": [], "returns": None})
    exec(compile(ast.fix_missing_locations(ast.Module([alone], [])), imported, "exec"), space)
    return space[method](None)


def registered(kind: str) -> list[str]:
    """The names of the first registry of a kind, in its order.

    Example:
        >>> registered("backbone")[:3], "clip" in registered("method")
        (['vit', 'eva02', 'swin'], False)
    """
    return list(_listed(*REGISTRIES[kind][0]))


def outdated(versions: dict[str, int]) -> list[str]:
    """Which of the stored versions are older than today's, in words: "method mae 1, now 2"."""
    today = {component: current_version(component) for component in versions}
    return [f"{name} {versions[name]}, now {now}" for name, now in today.items() if now and versions[name] < now]


def _listed(module: str, registry: str) -> dict[str, ast.expr]:
    """What a dict literal lists, by name."""
    listed = _assigned(module, registry)
    assert isinstance(listed, ast.Dict), f"{registry} of {module} must be a dict literal"
    pairs = zip(listed.keys, listed.values, strict=True)
    return {str(key.value): value for key, value in pairs if isinstance(key, ast.Constant)}


def _class_value(module: str, name: str, attribute: str) -> ast.expr | None:
    """What a class assigns to an attribute, or the first of its bases that does."""
    for node in _module(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            found = _value(node.body, attribute)
            if found is not None:
                return found
            bases = (_class_value(module, base.id, attribute) for base in node.bases if isinstance(base, ast.Name))
            return next((value for value in bases if value is not None), None)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ssl_bench."):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _class_value((node.module or "").removeprefix("ssl_bench."), alias.name, attribute)
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

"""Identity: what defines an encoder or a number, as plain values whose hash names it.

A component (a method, a backbone, an evaluator, ...) stands in an identity with its version and with the settings that
differ from its defaults. So a new keyword whose default changes nothing changes no identity, and neither does a comment
or a renamed file; what may change numbers raises a version.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import content_hash
from ssl_bench.utils.imports import imported_beside


def identify(identity: Mapping[str, Any]) -> str:
    """Hash of an identity, 16 hex digits."""
    return content_hash(identity)[:16]


def defaults_of(cls: type) -> dict[str, Any]:
    """The keywords of a constructor that have a default, and their defaults."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def differing(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not the default, and those that have none.

    Example:
        >>> differing({"epochs": 100.0, "betas": [0.9, 0.95], "name": "x"}, {"epochs": 100, "betas": (0.9, 0.999)})
        {'betas': [0.9, 0.95], 'name': 'x'}
    """
    return {key: value for key, value in values.items() if key not in defaults or _list(value) != _list(defaults[key])}


def _list(value: Any) -> Any:
    return [_list(item) for item in value] if isinstance(value, list | tuple) else value


def merged_versions(identity: Mapping[str, Any]) -> dict[str, int]:
    """Every version that an identity states, at any depth; the oldest where one is there twice.

    Example:
        >>> merged_versions({"encoder": {"versions": {"views": 1}}, "evaluation": {"versions": {"views": 2, "a": 1}}})
        {'a': 1, 'views': 1}
    """
    found: dict[str, int] = {}
    for key, value in identity.items():
        if isinstance(value, Mapping):
            for component, version in (value if key == "versions" else merged_versions(value)).items():
                found[component] = min(version, found.get(component, version))
    return dict(sorted(found.items()))


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

# Source code ----------------------------------------------------------------------------------------------------------


def is_external(cls: type) -> bool:
    """Whether a class comes from outside this package, where no version is kept for it."""
    return cls.__module__.partition(".")[0] != "ssl_bench"


def source_of(cls: type) -> dict[str, str]:
    """What the identity of a class from outside holds beside its version: ``{"source": hash}``; nothing for our own.

    An edited file is another method, and so is one that imports an edited file from its own folder.

    Raises:
        UserError: See ``source_hash``.
    """
    return {"source": source_hash(cls)} if is_external(cls) else {}


def source_hash(cls: type) -> str:
    """Hash of the file of a class and, of a class from outside, of the files beside it that it imports. 16 hex digits.

    Without such imports it is the ``syntax_hash`` of the file (see ``imports.imported_beside``).

    Raises:
        UserError: The class has no file, as in an interactive session, or one of the files can't be read.
    """
    try:
        file = Path(inspect.getfile(cls))
        own = syntax_hash(file.read_text())
        beside = imported_beside(file) if is_external(cls) else {}
        imported = {name: syntax_hash(path.read_text()) for name, path in beside.items()}
        return identify({"file": own, "imported": imported}) if imported else own
    except (OSError, TypeError, SyntaxError) as error:
        raise UserError(f"class {cls.__name__} must stand in a Python file, which says what it is: {error}") from error


def syntax_hash(source: str) -> str:
    """Hash of what Python code does: its syntax tree without positions, comments and docstrings. 16 hex digits.

    The same on every version of Python that has the same syntax, which ``ast.dump`` is not.

    Example:
        >>> syntax_hash("def f(x):\\n    'Half.'\\n    return x / 2  # it") == syntax_hash("def f(x): return (x / 2)")
        True
        >>> syntax_hash("x = 1") == syntax_hash("x = 2")
        False
    """
    return hashlib.sha256(repr(_tree(ast.parse(source))).encode()).hexdigest()[:16]


def _tree(node: Any) -> Any:
    if isinstance(node, list):
        return [_tree(item) for item in node]
    if not isinstance(node, ast.AST):
        return node
    fields = dict(ast.iter_fields(node))
    if isinstance(node, DOCUMENTED) and _has_docstring(node.body):
        fields["body"] = node.body[1:]
    said = {key: _tree(value) for key, value in fields.items() if key != "kind" and value not in (None, [])}
    return type(node).__name__, sorted(said.items())


def _has_docstring(body: list[ast.stmt]) -> bool:
    first = body[0].value if body and isinstance(body[0], ast.Expr) else None
    return isinstance(first, ast.Constant) and isinstance(first.value, str)

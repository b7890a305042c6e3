"""Which files of a user's folder a Python file imports."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

INSTALLED = {"site-packages", "dist-packages"}  # folders of packages; an environment may lie below a user's folder
LEFT_OUT = {"ssl_bench", *sys.stdlib_module_names}  # its components have versions; Python may lie there as well


def imported_beside(file: Path) -> dict[str, Path]:
    """The Python files below the folder of a file that it imports, also through one another.

    They are found in the text of the files, so that an import within a function counts from the start. Installed
    packages and this one are left out, and so is everything where the file itself is of an installed package.

    Args:
        file: A Python file.

    Returns:
        Path from the folder, with ``/`` -> file.

    Raises:
        OSError: One of them can't be read.
        SyntaxError: One of them is not Python.
    """
    file = file.resolve()
    folder, found, left = file.parent, {}, [file]
    while left:
        at = left.pop()
        for path in _imported(at):
            if path == file or not path.is_relative_to(folder) or INSTALLED & set(path.parts):
                continue
            name = path.relative_to(folder).as_posix()
            if name not in found:
                found[name] = path
                left.append(path)
    return found


def _imported(file: Path) -> Iterator[Path]:
    """The files that the import statements of a file name, where they can be found."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(_place_of(alias.name), alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            place = Path(*file.parts[: -node.level]) if node.level else _place_of(parts[0])
            for alias in node.names:  # each may be a module or something within one
                yield from _files(place, [*parts, alias.name])


def _place_of(name: str) -> Path | None:
    """The folder that Python takes a module from; None where that is no folder, or the module is left out."""
    top = name.partition(".")[0]
    try:
        spec = None if top in LEFT_OUT else importlib.util.find_spec(top)
    except (ImportError, ValueError):  # ValueError: of a module that a program made
        return None
    if spec is None:
        return None
    inside = list(spec.submodule_search_locations or ())
    file = inside[0] if inside else spec.origin
    return Path(file).resolve().parent if file else None  # "built-in" has a parent without any such file


def _files(place: Path | None, parts: list[str]) -> Iterator[Path]:
    """The files that run when a module is imported: its own and those of the packages that it is in.

    Args:
        place: The folder where its first part is; None for none.
        parts: Of its name.
    """
    for number in range(len(parts) if place else 0):
        at = Path(place or "", *parts[: number + 1])
        yield from (path.resolve() for path in (at.with_suffix(".py"), at / "__init__.py") if path.is_file())

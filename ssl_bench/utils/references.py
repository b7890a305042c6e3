"""What a user names in a Python file of his own: ``path/to/file.py:Name`` or ``package.module:Name``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssl_bench.utils.errors import UserError, line_of, unknown

EXTERNAL = "ssl_bench_external_"  # before the name of a module that was a file


def is_reference(text: str) -> bool:
    """Whether a text names something in a Python file or module, which runs when it is looked up.

    Example:
        >>> [is_reference(text) for text in ("my/file.py:Name", "my.module:Name", "mae", "dino:quick", "shapes@64")]
        [True, True, False, False, False]
    """
    place, _, name = text.rpartition(":")
    dotted = all(part.isidentifier() for part in place.split(".")) and "." in place
    return name.isidentifier() and (place.endswith(".py") or dotted)


def without_place(text: str) -> str:
    """A text as it may travel in a row: of a place that is absolute, or leads up or home, the last part alone.

    Example:
        >>> [without_place(text) for text in ("folder:/home/me/photos#10", "checkpoint:~/a.pt", "/home/me/own.py:load")]
        ['folder:photos#10', 'checkpoint:a.pt', 'own.py:load']
        >>> [without_place(text) for text in ("folder:data/photos", "hf:org/name", "timm:resnet18", "own.py:load")]
        ['folder:data/photos', 'hf:org/name', 'timm:resnet18', 'own.py:load']
    """
    kind, place = re.fullmatch(r"((?:\w{2,}:)?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    away = re.match(r"[/\\~]|\w:[/\\]|(.*[/\\])?\.\.[/\\]", place) and not place.startswith("//")
    return kind + (re.split(r"[/\\]", place.rstrip("/\\"))[-1] if away else place)


def look_up(reference: str, what: str, fits: Callable[[Any], bool]) -> tuple[str, Any]:
    """Import the place of a reference, and take the name from it.

    Args:
        reference: See ``is_reference``.
        what: What it should be, in the singular, for errors: "method".
        fits: Whether an object of the module is such a thing.

    Returns:
        The name and the object.

    Raises:
        UserError: No such file or module, it fails while it is imported, or has nothing of that name that fits.
    """
    place, _, name = reference.rpartition(":")
    try:
        if place.endswith(".py"):
            if not Path(place).is_file():
                raise UserError(f"{what} {reference!r}: no such file: {place}")
            module_name = _module_name(Path(place))
            spec = importlib.util.spec_from_file_location(module_name, place)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except UserError:
        raise
    except Exception as error:  # whatever a user's file raises while it is imported
        raise UserError(f"{what} {reference!r}: importing {place} failed: {type(error).__name__}: {error}") from error
    fitting = [each for each, value in vars(module).items() if not each.startswith("_") and fits(value)]
    if name not in fitting:
        raise unknown(f"{what} in {place}", name, fitting)
    return name, getattr(module, name)


def _module_name(path: Path) -> str:
    """The name of a file's module, another one for every file: files of one name stand in different folders."""
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    return f"{EXTERNAL}{path.stem}_{place}"


def external_line(error: BaseException) -> str:
    """Where an error came up in a file that was named on the command line; see ``errors.line_of``."""
    return line_of(error, lambda frame: frame.f_globals.get("__name__", "").startswith(EXTERNAL))

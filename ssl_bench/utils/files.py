"""Files: atomic writes, content hashes, and the recipes, protocols and suites that travel with the package."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock

from ssl_bench.utils.errors import RunError

PACKAGE = Path(__file__).parents[1]


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Write a file so that a reader sees the old content or the new one, never a part of it.

    Raises:
        RunError: The disk is full or the folder can't be written; nothing is left behind.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise RunError(f"cannot write {path}: {error.strerror or error}") from error
        raise
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for one process: others wait here. The lock ends with the process, however it ends.

    Raises:
        OSError: The folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


def content_hash(value: Any) -> str:
    """Hash of a JSON-able value: 64 hex digits. The order of keys and 1 against 1.0 make no difference.

    Example:
        >>> content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2.0], "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


_AS_IT_IS = {str, int, bool, type(None)}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    # A row has hundreds of leaves, and a folder thousands of rows: no call for those that stay as they are.
    if isinstance(value, dict):
        return {key: item if type(item) in _AS_IT_IS else _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [item if type(item) in _AS_IT_IS else _plain(item) for item in value]
    return value


def parse_json(text: str | bytes) -> Any:
    """`json.loads` that refuses NaN and Infinity, which Python reads although JSON has neither.

    Raises:
        ValueError: Not JSON.
    """
    return json.loads(text, parse_constant=_no_number)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def file_hash(path: str | Path) -> str:
    """sha256 of a file, 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

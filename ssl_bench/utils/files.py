"""Files: atomic writes, content hashes, and the recipes, protocols and suites that travel with the package."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

from filelock import FileLock

from ssl_bench.utils.errors import RunError, UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PACKAGE = Path(__file__).parents[1]
TEMPORARY = ".part"  # how the names of files that are being written end


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A file to write, and its name; at the end it takes the place of ``path``, whole and on the disk.

    After an error it is gone.

    Args:
        path: In a folder that exists.

    Raises:
        OSError: It can't be written.
    """
    handle, name = _temporary(path)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file, Path(name)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Write a file so that a reader sees the old content or the new one, never a part of it.

    Raises:
        RunError: The disk is full or the folder can't be written; nothing is left behind.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as (file, _):
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in a folder that killed processes left; those that a process is writing stay.

    Their owner holds a lock on them, which ends with the process. Where locks aren't known (Windows), all stay.
    """
    if fcntl is None or not folder.is_dir():
        return
    for path in folder.glob(f".*{TEMPORARY}"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _temporary(path: Path) -> tuple[int, str]:
    """A new file beside ``path``, locked by this process: its handle and its name."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):  # not taken for a leftover before it was locked
            return handle, name
        os.close(handle)


def is_whole(path: Path) -> bool:
    """Whether a file of ``torch.save`` is there, not cut off, and has the checksums it was written with."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError, zlib.error):
        return False


def open_regular(path: str | Path, largest: int) -> BinaryIO:
    """Open a file that may come from anyone: a regular one, not larger than it should be.

    Args:
        path: The file; a link to one will do.
        largest: Bytes.

    Raises:
        OSError: There is none, it is a folder, a pipe or a device, it is larger, or it can't be read.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # to open a pipe must not wait
    about = os.fstat(handle)
    if stat.S_ISREG(about.st_mode) and about.st_size <= largest:
        return os.fdopen(handle, "rb")
    os.close(handle)
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "it is not a file")
    raise OSError(errno.EFBIG, f"it has {about.st_size:,} bytes, and such a file has at most {largest:,}")


def read_regular(path: str | Path, largest: int) -> bytes:
    """The content of a file as of ``open_regular``.

    Raises:
        FileNotFoundError: There is none.
        UserError: Any other error of ``open_regular``.
    """
    try:
        with open_regular(path, largest) as file:
            return file.read()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


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


def remove_unused(folder: Path) -> None:
    """Remove a folder in which nothing is but its lock, as after a run that failed before it made anything."""
    with contextlib.suppress(OSError):
        if {path.name for path in folder.iterdir()} <= {".lock"}:
            shutil.rmtree(folder, ignore_errors=True)


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

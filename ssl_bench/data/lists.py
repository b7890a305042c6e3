"""Lists of files that travel with a data set, and the names in them: they may come from anyone."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import read_regular

LARGEST = 2**23  # bytes of a list; those of UCF101 have 0.5 MB
MOST = 200_000  # lines
LONGEST = 1000  # letters of a line
LONGEST_NAME = 255  # bytes, as file systems have it


def read_lines(path: Path) -> list[str]:
    """Lines of a list in UTF-8, without empty ones and comments.

    Raises:
        UserError: It isn't there, is no file, or is no such list.
    """
    try:
        lines = [line.strip() for line in read_regular(path, LARGEST).decode().splitlines()]
    except FileNotFoundError as error:
        raise missing(path) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not in UTF-8") from error
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise UserError(f"{path} names nothing")
    if len(found) > MOST:
        raise UserError(f"{path} has {len(found):,} lines; at most {MOST:,} are taken")
    if long := [line for line in found if len(line) > LONGEST]:
        raise UserError(f"{path}: the line {long[0][:40]!r}... has {len(long[0]):,} letters")
    return found


def read_list(path: Path, columns: bool = False) -> list[str]:
    """Names of files in a list, each below the folder of the data set.

    Args:
        path: The list.
        columns: A line has more behind the name.

    Raises:
        UserError: As of `read_lines`, or a name that leads elsewhere.
    """
    names = [line.split()[0] if columns else line for line in read_lines(path)]
    if strange := [name for name in names if not is_place(name)]:
        raise UserError(f"{path}: {strange[0][:100]!r} leads out of the folder, or is no name of a file")
    return names


def is_place(name: str) -> bool:
    """Whether a name that a file gives stands for a file below the folder where it is looked up.

    Example:
        >>> [is_place(name) for name in ("a.jpg", "a/b.jpg", "/etc/passwd", "../a", "a/../b", "a//b", "", "a" * 256)]
        [True, True, False, False, False, False, False, False]
    """
    if not name.isprintable() or os.path.splitdrive(name)[0] or len(name.encode()) > LONGEST_NAME:
        return False
    return not {"", ".", ".."} & set(re.split(r"[/\\]", name))


def size_of(path: str | Path) -> int:
    """Bytes of a file; 0 of one that isn't there or can't be looked up, which is said when it is read."""
    try:
        return os.path.getsize(path) if os.path.isfile(path) else 0
    except OSError:
        return 0


def missing(path: Path) -> UserError:
    """An error that says what isn't there, and where data sets belong."""
    return UserError(
        f"{path} is not there: put the data set in data/ as its authors lay it out, or set SSL_BENCH_DATA to the "
        "folder that has it"
    )

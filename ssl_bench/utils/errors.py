"""The two kinds of failure a user can meet, each shown as one line and never as a traceback."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType


class UserError(Exception):
    """The request itself is wrong (a name, path, key, value or file); the command exits with status 2."""


class RunError(Exception):
    """Something that was asked for failed while it ran (full disk, diverged loss); exit status 1."""


# What schedulers and terminals send before they kill; Windows has the first alone.
STOPPING: list[int] = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]


class Stopped(SystemExit):
    """A signal (SIGTERM, SIGUSR1, SIGHUP) ended the command after what it was doing was saved.

    The exit status is 128 + the signal's number, as a shell reports it (on Linux 143, 138 and 129).

    Example:
        >>> Stopped(15).status, Stopped(15).name
        (143, 'SIGTERM')
    """

    def __init__(self, signum: int) -> None:
        self.status = 128 + signum
        super().__init__(self.status)
        self.name = signal.Signals(signum).name


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line: its first, or the name of its kind where it says nothing.

    Example:
        >>> first_line(ValueError("too large\\nsee the manual")), first_line(KeyError())
        ('too large', 'KeyError')
    """
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def line_of(error: BaseException, belongs: Callable[[FrameType], bool]) -> str:
    """Where an error came up in some code: its file and the innermost line there, "own.py line 7"; empty if not there.

    Args:
        error: As it was caught.
        belongs: Whether a frame is of that code.
    """
    found, traceback = "", error.__traceback__
    while traceback:
        if belongs(traceback.tb_frame):
            found = f"{Path(traceback.tb_frame.f_code.co_filename).name} line {traceback.tb_lineno}"
        traceback = traceback.tb_next
    return found


def unknown(what: str, value: object, choices: Iterable[str]) -> UserError:
    """An error that names a wrong value and the valid ones, the closest first.

    Args:
        what: What the value should have been, in the singular: "method", "data set", "key".
        value: What was given.
        choices: The valid names.

    Example:
        >>> str(unknown("method", "may", ["moco_v3", "mae"]))
        "unknown method 'may': did you mean 'mae'? Choose from: mae, moco_v3"
    """
    names, text = sorted(choices), str(value)
    text = text if len(text) <= 200 else f"{text[:200]}..."
    close = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UserError(f"unknown {what} {text!r}: {hint}Choose from: {', '.join(names) or '(none)'}")

"""Progress of anything long: a bar with the time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")

QUIET = 2.0  # seconds before anything is shown
INTERVAL = 10.0  # seconds between two plain lines


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` unchanged and say on standard error how far the loop is.

    Nothing is shown for the first two seconds, so that short loops stay silent.

    Args:
        items: What is looped over.
        description: What is being done: "reading cifar10 train".
        total: Number of items; by default the length of ``items``, when it has one.

    Example:
        >>> list(progress([1, 2, 3], "counting"))
        [1, 2, 3]
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    return _bar(items, description, total) if interactive() else _lines(items, description, total)


def interactive() -> bool:
    """Whether a bar may be drawn: standard error is a terminal that no other process of this command writes to."""
    return sys.stderr.isatty() and multiprocessing.parent_process() is None


def _lines(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    start = time.monotonic()
    shown = start + QUIET - INTERVAL
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - shown >= INTERVAL:
            shown = now
            print(_line(description, done, total, now - start), file=sys.stderr, flush=True)
        yield item


def _line(description: str, done: int, total: int | None, seconds: float) -> str:
    """One plain line.

    Example:
        >>> _line("reading", 2500, 10000, 5.0)
        'reading: 2,500 of 10,000 (25 %), 15 s left'
    """
    if not total:
        return f"{description}: {done:,}"
    left = f", {seconds / done * (total - done):.0f} s left" if done else ""
    return f"{description}: {done:,} of {total:,} ({100 * done // total} %){left}"


def _bar(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    # Imported here: plain output does not need it.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    task = bar.add_task(description, total=total)
    start = shown = time.monotonic()
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - start >= QUIET and now - shown >= 0.1:
                shown = now
                bar.start()
                bar.update(task, completed=done)
            yield item
    finally:
        bar.stop()

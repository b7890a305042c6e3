"""Progress of anything long: a bar with the time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

T = TypeVar("T")

QUIET = 2.0  # seconds before anything is shown
MEANINGFUL = 5.0  # seconds before the time left is told: the first steps are slower than the others
INTERVAL = 10.0  # seconds between two plain lines
REDRAW = 0.1  # seconds between two drawings of a bar


class Progress:
    """How far something is, on standard error: a bar on a terminal, a plain line every ten seconds elsewhere.

    Nothing is shown for the first two seconds, so that what is short stays silent.

    Args:
        description: What is being done: "reading cifar10 train".
        total: Number of items, if it is known.
        first: Items that were done before, in an earlier process.
    """

    def __init__(self, description: str, total: int | None = None, first: int = 0) -> None:
        self.description, self.total, self.first = description, total, first
        self.started = time.monotonic()
        self.bar: Any = None
        self.drawn = interactive()
        self.due_at = self.started + QUIET

    @property
    def due(self) -> bool:
        """Whether it is time to show something: ask before working out a note."""
        return time.monotonic() >= self.due_at

    def show(self, done: int, note: str = "") -> None:
        """Show that ``done`` items are done, those before included, with a few words behind."""
        now = time.monotonic()
        self.due_at = now + (REDRAW if self.drawn else INTERVAL)
        if not self.drawn:
            line = _line(self.description, done, self.total, now - self.started, self.first)
            print(line + (f", {note}" if note else ""), file=sys.stderr, flush=True)
            return
        if self.bar is None:
            self._start()
        self.bar.update(self.task, completed=done, description=f"{self.description}  {note}".rstrip())

    def _start(self) -> None:
        # Imported here: plain output does not need it.
        from rich import progress as rich
        from rich.console import Console
        from rich.text import Text

        columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn())
        started = self.started

        class Left(rich.TimeRemainingColumn):
            """The time left, once it can be told."""

            def render(self, task: rich.Task) -> Text:
                early = time.monotonic() - started < MEANINGFUL
                return Text("-:--:--", style="progress.remaining") if early else super().render(task)

        times = (rich.TimeElapsedColumn(), Left())
        self.bar = rich.Progress(*columns, *times, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task(self.description, total=self.total, completed=self.first)
        self.bar.start()

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` unchanged and say on standard error how far the loop is (see ``Progress``).

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
    shown = Progress(description, total)
    try:
        for done, item in enumerate(items):
            if shown.due:
                shown.show(done)
            yield item
    finally:
        shown.close()


def interactive() -> bool:
    """Whether a bar may be drawn: standard error is a terminal that no other process of this command writes to."""
    return sys.stderr.isatty() and multiprocessing.parent_process() is None


def _line(description: str, done: int, total: int | None, seconds: float, first: int = 0) -> str:
    """One plain line.

    Example:
        >>> _line("reading", 2500, 10000, 5.0)
        'reading: 2,500 of 10,000 (25 %), 15 s left'
        >>> _line("reading", 250, 10000, 3.0)  # too early to tell
        'reading: 250 of 10,000 (2 %)'
        >>> _line("mae, seed 0", 600, 1000, 3600.0, first=500)
        'mae, seed 0: 600 of 1,000 (60 %), 4 h left'
    """
    if not total:
        return f"{description}: {done:,}"
    known = done > first and seconds >= MEANINGFUL
    left = f", {duration(seconds / (done - first) * (total - done))} left" if known else ""
    return f"{description}: {done:,} of {total:,} ({100 * done // total} %){left}"


def duration(seconds: float) -> str:
    """A length of time in words.

    Example:
        >>> [duration(s) for s in (14.6, 600, 7380, 90000)]
        ['15 s', '10 min', '2 h 3 min', '25 h']
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes and hours < 10 else f"{round(hours + minutes / 60)} h"

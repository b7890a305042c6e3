"""How long the parts of a training take: nothing is measured, and nothing waits for a device, while nobody asks."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

_running: Stopwatch | None = None


class Stopwatch:
    """Seconds of each ``part`` that is entered while this runs, without those of the parts within it.

    Args:
        wait: Called before each reading: waits until a device has done what it was asked for.

    Attributes:
        seconds: By part.
        calls: How often each was entered.

    Example:
        >>> with Stopwatch() as watch:
        ...     with part("outer"), part("inner"):
        ...         pass
        >>> sorted(watch.calls.items()), watch.seconds["outer"] < 0.1
        ([('inner', 1), ('outer', 1)], True)
    """

    def __init__(self, wait: Callable[[], object] = lambda: None) -> None:
        self.wait = wait
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.inner: list[float] = []  # seconds of what has ended within each part that is open

    def __enter__(self) -> Stopwatch:
        global _running
        assert _running is None, "another stopwatch runs"
        _running = self
        return self

    def __exit__(self, *error: object) -> None:
        global _running
        _running = None


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    """What runs within, or each call of a function with this decorator, is one part of what is measured."""
    watch = _running
    if watch is None:
        yield
        return
    watch.wait()
    start = time.perf_counter()
    watch.inner.append(0.0)
    try:
        yield
    finally:
        watch.wait()
        spent = time.perf_counter() - start
        watch.seconds[name] += spent - watch.inner.pop()
        watch.calls[name] += 1
        if watch.inner:
            watch.inner[-1] += spent

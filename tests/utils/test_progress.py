"""Progress of long loops on a terminal; plain lines are tested with the data sets."""

from __future__ import annotations

import pytest

from ssl_bench.utils import progress as module
from ssl_bench.utils.progress import Progress


def test_a_bar_tells_the_time_left_as_late_as_a_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "interactive", lambda: True)
    shown = Progress("reading", 1000)

    def left(at: float, done: int) -> str:
        now[0] = at
        shown.show(done)
        column = shown.bar.columns[-1]
        column.max_refresh = None  # it keeps its text for half a second of real time
        return str(column(shown.bar.tasks[0]))

    try:
        assert [left(2.5, 10), left(3.0, 20), left(4.5, 30)] == ["-:--:--"] * 3
        assert left(6.0, 40) != "-:--:--"
    finally:
        shown.close()

"""Processes of this machine share its GPUs."""

from __future__ import annotations

import os

import pytest
import torch

from ssl_bench.launch import pool


class Worker:
    """Knows which GPU it was started with."""

    saw = ""

    def start(self) -> None:
        self.saw = os.environ.get(pool.VISIBLE, "none")


@pytest.mark.parametrize(
    ("shown", "count", "expected"),
    [(None, 2, ["0", "1", "0"]), ("3,5", 2, ["3", "5", "3"]), (None, 1, ["none"] * 3), ("4", 1, ["4"] * 3)],
)
def test_each_process_sees_one_of_several_gpus(
    shown: str | None, count: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(pool.VISIBLE, raising=False)
    if shown:
        monkeypatch.setenv(pool.VISIBLE, shown)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    workers = [Worker() for _ in range(3)]
    pool._start(workers)
    assert [worker.saw for worker in workers] == expected and os.environ.get(pool.VISIBLE) == shown
    assert pool.default_jobs() == count

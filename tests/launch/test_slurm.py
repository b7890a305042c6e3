"""Suites as jobs, with submitit's processes of this machine in the place of SLURM's."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launch_suite import write_suite

from ssl_bench.commands.bench import bench
from ssl_bench.launch import slurm
from ssl_bench.launch.slurm import STOPPED, Cluster, Job, run_on_slurm
from ssl_bench.results.rows.row import read_rows
from ssl_bench.utils.errors import RunError, Stopped, UserError

HERE = Cluster(kind="local", minutes=5)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "POLL", 0.1)
    return tmp_path


def test_a_job_for_each_task_that_is_missing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_suite(here)
    assert bench("toy.yaml", jobs=1, logger=("csv",), show=lambda _: None) == []
    rows = {row["method"]: row for row in read_rows("results/toy")}
    assert rows.keys() == {"untrained", "raw_pixels", "supervised"}
    for suffix in (".json", ".npy"):
        rows["supervised"].path.with_suffix(suffix).unlink()
    capsys.readouterr()
    assert bench("toy.yaml", launcher="slurm", cluster=HERE, logger=("csv",), show=lambda _: None) == []
    again = {row["method"]: row for row in read_rows("results/toy")}
    assert {name: row["metrics"] for name, row in again.items()} == {name: row["metrics"] for name, row in rows.items()}
    said = capsys.readouterr().err
    assert "1 jobs queued, 0 were before; what they say: runs/slurm" in said and "1 of 1 runs done" in said
    files = len(list((here / "runs" / "slurm").iterdir()))
    assert bench("toy.yaml", launcher="slurm", cluster=HERE, show=lambda _: None) == []
    assert len(list((here / "runs" / "slurm").iterdir())) == files


class Done:
    """A job that has ended: with a result, an error, or nothing."""

    def __init__(self, folder: Path, outcome: Any) -> None:
        self.job_id, self.outcome = "7", outcome
        self.paths = type("Paths", (), {"result_pickle": folder / "result", "stdout": folder / "7.out"})
        if outcome is None:
            self.paths.result_pickle = folder / "none"  # type: ignore[attr-defined]
        else:
            (folder / "result").touch()

    def done(self) -> bool:
        return True

    def exception(self) -> Exception | None:
        return self.outcome if isinstance(self.outcome, Exception) else None

    def result(self) -> Any:
        return None if self.outcome == "fine" else self.outcome


def outcomes(here: Path, monkeypatch: pytest.MonkeyPatch, *each: Any) -> tuple[list[str], list[int]]:
    """What comes of one task whose jobs end so, and the tasks that finished."""
    left, finished = list(each), list[int]()

    class Executor:
        def update_parameters(self, **_: Any) -> None:
            pass

        def submit(self, job: Job) -> Done:
            return Done(here, left.pop(0))

    monkeypatch.setattr(slurm, "_executor", lambda cluster: Executor())
    failed = run_on_slurm(prepare, (), {3: "mae"}, HERE, finished.append)
    assert not left
    return failed, finished


def prepare() -> Callable[[int], str | None]:
    return lambda index: None


def test_stopped_and_vanished_jobs_are_queued_again(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcomes(here, monkeypatch, STOPPED, None, STOPPED, None, "fine") == ([], [3])
    said = capsys.readouterr().err
    assert said.count("mae: stopped, and is queued again") == 2 and said.count("its job 7 vanished") == 2


def test_failures_name_the_file_of_the_job(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = here / "7.out"
    assert outcomes(here, monkeypatch, "mae, seed 0: the disk is full")[0] == [f"mae, seed 0: the disk is full ({log})"]
    assert outcomes(here, monkeypatch, ValueError("a\nbug"))[0] == [f"mae: bug ({log})"]
    assert outcomes(here, monkeypatch, *[None] * 4)[0] == [f"mae: 4 jobs vanished without a result ({log})"]


def stop() -> Callable[[int], str | None]:
    raise Stopped(signal.SIGTERM)


def test_a_job_that_a_signal_stops_says_so_and_goes_on_when_it_is_preempted() -> None:
    assert Job(stop, (), 0)() == STOPPED
    again = Job(prepare, (), 5).checkpoint().function
    assert (again.prepare, again.arguments, again.index) == (prepare, (), 5)


def test_mistakes_are_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_suite(here)
    with pytest.raises(UserError, match="unknown launcher 'slrm': did you mean 'slurm'"):
        bench("toy.yaml", launcher="slrm")
    with pytest.raises(UserError, match="time is 0 minutes"):
        Cluster(minutes=0)
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(RunError, match="no SLURM here"):
        bench("toy.yaml", launcher="slurm", show=lambda _: None)


def test_a_task_that_is_queued_already_is_not_queued_twice(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def squeue(command: list[str], **_: Any) -> Any:
        asked.append(command[0])
        lines = "mae|7\nother|8\n" if len(asked) == 1 else ""
        return type("Done", (), {"returncode": 0, "stdout": lines, "stderr": ""})

    monkeypatch.setattr(slurm.subprocess, "run", squeue)
    monkeypatch.setattr(slurm, "_executor", lambda cluster: None)
    monkeypatch.setattr(slurm, "_adopted", lambda identifier: Done(here, "fine"))
    assert run_on_slurm(prepare, (), {3: "mae"}, Cluster()) == [] and set(asked) == {"squeue"}

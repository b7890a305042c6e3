"""Several commands in the same folders at once: nothing is damaged, and nothing is done twice."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from faults.harness import Bench

from ssl_bench.commands.bench import bench as run_bench
from ssl_bench.commands.check import check
from ssl_bench.commands.leaderboard import leaderboard
from ssl_bench.utils.errors import UserError

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")


@linux
def test_two_suites_in_one_folder_and_a_leaderboard_while_rows_arrive(tmp_path: Path) -> None:
    alone = Bench(["mae"], ["knn", "logistic"], tmp_path / "alone")
    alone.prepare()
    assert alone.attempt() == 0, alone.log()
    both = Bench(["mae"], ["knn", "logistic"], tmp_path / "both")
    both.prepare()
    left = [both.start(), both.start()]
    boards = 0
    while left:
        for pid in left[:]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                assert status == 0, both.log()
                left.remove(pid)
        try:
            leaderboard(both.folder / "results", show=lambda _: None)
            boards += 1
        except UserError as error:
            if "no rows in" not in str(error):
                raise
    assert boards > 1 and both.rows() == alone.rows() and both.leftovers() == []
    assert check(both.folder / "results", show=lambda _: None) == []
    work = Counter((both.folder / "work.txt").read_text().splitlines())
    assert set(work.values()) == {1} and work == Counter((alone.folder / "work.txt").read_text().splitlines())


def test_folders_that_cannot_be_written_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the way stands for a folder without rights, which root has in any case."""
    suite = Bench(["mae"], ["knn"], tmp_path / "suite")
    suite.prepare()
    monkeypatch.chdir(suite.folder)
    monkeypatch.setattr("ssl_bench.commands.evaluation_sets.load", lambda *_, **__: suite.splits)
    Path("runs").write_text("in the way")
    failed = run_bench("suite.yaml", out="results", methods=[], jobs=1, show=lambda _: None)
    assert len(failed) == 3 and all("runs" in line and "\n" not in line for line in failed)
    assert not Path("results").exists()
    Path("runs").unlink()
    Path("results").write_text("in the way")
    failed = run_bench("suite.yaml", out="results", methods=[], jobs=1, show=lambda _: None)
    assert len(failed) == 3 and all("cannot write results" in line and "\n" not in line for line in failed)
    assert Path("results").read_text() == "in the way"

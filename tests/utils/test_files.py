"""Atomic writes and hashes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.utils.files import content_hash, locked, remove_leftovers, write_atomic
from ssl_bench.utils.shipped import find_yaml


def test_write_atomic(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "deep" / "a.txt", "old")
    write_atomic(path, b"new")
    assert path.read_text() == "new" and os.listdir(path.parent) == ["a.txt"]


def test_full_disk_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomic(tmp_path / "a.txt", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"cannot write .*a\.txt: No space left on device"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_leftovers_of_dead_owners_are_removed(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from ssl_bench.utils.files import replacing\n"
    code += f"with replacing(Path({str(tmp_path / 'row.json')!r})) as _:\n    print('open', flush=True)\n"
    with subprocess.Popen([sys.executable, "-c", code + "    time.sleep(60)"], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
        (left,) = tmp_path.iterdir()
        remove_leftovers(tmp_path)
        assert left.exists()  # its owner writes on
        other.kill()
        other.wait()
        (tmp_path / ".lock").touch()
        (tmp_path / "row.json").touch()
        remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".lock", "row.json"]
    remove_leftovers(tmp_path / "none")


def test_content_hash_is_sensitive() -> None:
    assert content_hash({"a": 1}) != content_hash({"a": 1.5}) != content_hash({"a": "1"})


def test_unknown_names_list_the_shipped_ones() -> None:
    with pytest.raises(UserError, match="unknown suite 'quik': did you mean 'quick'"):
        find_yaml("results", "quik", "{}/suite.yaml")
    with pytest.raises(UserError, match=r"unknown evaluation 'kn': did you mean 'knn'.*knn-lightly.*linear"):
        find_yaml("evaluations", "kn")


def test_a_folder_is_held_until_its_process_is_killed(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from ssl_bench.utils.files import locked\n"
    code += f"with locked(Path({str(tmp_path / 'run')!r})):\n    print('held', flush=True)\n    time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(Timeout):
            FileLock(tmp_path / "run" / ".lock", timeout=0.2).acquire()
        other.kill()
        start = time.monotonic()
        with locked(tmp_path / "run"):
            assert time.monotonic() - start < 10
    with locked(tmp_path / "run"):  # again, after it was left
        pass


def test_a_folder_that_cannot_be_made_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), locked(tmp_path / "file" / "run"):
        pass

"""YAML files of any origin: an error in one line that names the file, in bounded time and memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ssl_bench.config.parsing import LARGEST, read_yaml
from ssl_bench.utils.errors import UserError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, r"line 2: not valid YAML: aliases"),
        ("a: &a [*a]", "aliases"),
        ("a: " + "[" * 10_000 + "]" * 10_000, "nested too deeply"),
        ("a: " + "9" * 5_000, "not valid YAML"),
        ("a: !!binary aGVsbG8=", "could not determine a constructor"),
        ("a: !!set {x, y}", "could not determine a constructor"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: !!timestamp 2020-13-45", "could not determine a constructor"),
        ("? [a, b]\n: 1", "unhashable|not a text"),
        ("1: 2", "the key 1 is not a text"),
        ("- a", "expected keys and values, found list"),
        ("a: [", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("# " + "x" * LARGEST, "at most 1,048,576"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_one_line_that_names_the_file(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    start = time.monotonic()
    with pytest.raises(UserError, match=words) as caught:
        read_yaml(path)
    assert "file.yaml" in str(caught.value) and "\n" not in str(caught.value) and time.monotonic() - start < 5


def test_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("fifo.yaml", "zero.yaml", "folder.yaml", "none.yaml"):
        with pytest.raises(UserError, match="is not a file"):
            read_yaml(tmp_path / name)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    with pytest.raises(UserError, match="cannot read"):
        read_yaml(tmp_path / "latin.yaml")


def test_what_json_has_is_read_and_a_date_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("a: [1, 2.5, 1e-3, true, null, x]\nb: {c: 2020-01-01}\n")
    assert read_yaml(path) == {"a": [1, 2.5, "1e-3", True, None, "x"], "b": {"c": "2020-01-01"}}

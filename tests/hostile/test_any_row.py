"""Rows of anyone, whatever they hold: one line each, and the leaderboard of the others."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.cases import HOW_MANY, one_line_at_most, paths, replaced, try_many, values
from hypothesis import strategies as st
from row_fixtures import whole

from ssl_bench.commands.check import check
from ssl_bench.commands.compare import compare
from ssl_bench.commands.leaderboard import FORMATS, leaderboard
from ssl_bench.commands.table import table
from ssl_bench.results.rows.make import write_row
from ssl_bench.results.rows.row import checksum_of, read_rows
from ssl_bench.results.rows.schema import LARGEST
from ssl_bench.utils.errors import RunError, UserError

RIGHT = np.arange(40) < 16


def reseal(path: Path, row: Any) -> None:
    """Write a row with the checksum that fits it, if it can have one."""
    if isinstance(row, dict):
        row = {**row, "checksum": checksum_of(row)}
    path.write_text(json.dumps(row))


def everything(folder: Path) -> list[str]:
    """What all commands say of a folder of rows."""
    said: list[str] = []
    leaderboard(folder, formats=[*FORMATS], show=said.append)
    table("mae", rows=[folder], show=said.append)
    return [*said, *check(folder, show=lambda _: None)]


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("metrics",), 3, "metrics is 3, not of type object"),
        (("metrics",), None, "metrics is None"),
        (("metrics", "top1"), None, "metrics.top1 is None"),
        (("metrics", "top1", "value"), 1e39, "at most 1e+09"),
        (("metrics", "top1", "n"), 2**70, "at most"),
        (("pretraining", "flops"), 1e39, "pretraining.flops is 1e+39"),
        (("pretraining", "peak_memory_bytes"), 1e39, "at most 1e+18"),
        (("evaluation", "cost"), {"wall_seconds": 1e999}, "Infinity is not a number in JSON"),
        (("method",), "\ud800", "which is no text"),
        (("flags",), ["\udfff"], "which is no text"),
        (("evaluation", "chosen"), {"\ud800": 1}, "which is no text"),
        (("recipe", "seed"), 2**63, "at most"),
        (("recipe", "settings"), json.loads("[" * 200 + "]" * 200), "recipe.settings"),
        (("evaluation", "chosen"), {"a": json.loads("[" * 200 + "]" * 200)}, "nested too deeply"),
        (("headline",), "top5", "no metric 'top5'"),
        (("identity",), [], "identity is []"),
        (("identity", "encoder", "teachers"), 3, "identity"),
        (("identity", "encoder"), {"backbone": {}, "versions": {}}, "id should be"),
        (("recipe", "teachers"), {"t": {"method": "m"}}, "its identity doesn't say 't'"),
        (("recipe", "teachers"), {"t": 3}, "its identity doesn't say 't'"),
    ],
    ids=str,
)
def test_one_bad_row_is_one_line(tmp_path: Path, add_row: Any, place: tuple[str, ...], value: Any, words: str) -> None:
    good, bad = add_row("good", 0, RIGHT), add_row("bad", 0, ~RIGHT).path
    try:
        reseal(bad, replaced(json.loads(bad.read_text()), place, value))
    except RecursionError:
        pytest.skip("no JSON")
    said = everything(tmp_path)
    assert said[0].startswith("WARNING: left out: ") and bad.name in said[0] and "\n" not in said[0]
    assert any(words in text for text in said), said
    assert (
        "good" in (tmp_path / "LEADERBOARD.md").read_text() and "bad" not in (tmp_path / "LEADERBOARD.md").read_text()
    )
    with pytest.raises(UserError, match=r"\.json"):
        compare(str(good.path), str(bad), show=lambda _: None)
    with pytest.raises(RunError, match="is not written"):
        write_row(tmp_path / "rows" / "new.json", json.loads(bad.read_text()), RIGHT)
    assert not (tmp_path / "rows" / "new.json").exists()


def test_what_is_no_file_of_a_rows_size(tmp_path: Path, add_row: Any) -> None:
    good = add_row("good", 0, RIGHT).path
    os.mkfifo(tmp_path / "rows" / "fifo.json")
    (tmp_path / "rows" / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "rows" / "folder.json").mkdir()
    (tmp_path / "rows" / "gone.json").symlink_to("nowhere")
    (tmp_path / "rows" / "latin.json").write_bytes(b'{"a": "\xff"}')
    with (tmp_path / "rows" / "large.json").open("wb") as file:
        file.truncate(70 * 2**20)
    start = time.monotonic()
    said = everything(tmp_path)
    assert time.monotonic() - start < 30
    assert sum("left out: " in text for text in said) == 12  # of the leaderboard and of the table
    assert [row["method"] for row in read_rows(tmp_path, lambda _: None)] == ["good"]
    for path in ("fifo", "zero", "large"):
        (tmp_path / "rows" / f"{path}.json").unlink()
    npy = good.with_suffix(".npy")
    for place in ("fifo", "/dev/zero", "large"):
        npy.unlink()
        if place == "fifo":
            os.mkfifo(npy)
        elif place == "large":
            with npy.open("wb") as file:
                file.truncate(70 * 2**20)
        else:
            npy.symlink_to(place)
        add_row("other", 0, RIGHT)
        with pytest.raises(UserError, match=r"\.npy"):
            leaderboard(tmp_path, show=lambda _: None)
        assert any(".npy" in text for text in check(tmp_path, show=lambda _: None))


def test_a_row_larger_than_a_row_is_not_written(tmp_path: Path, add_row: Any) -> None:
    row = add_row("good", 0, RIGHT).values
    row = {**row, "evaluation": {**row["evaluation"], "chosen": {"a": "x" * LARGEST}}}
    with pytest.raises(RunError, match=r"and a row at most 4,194,304"):
        write_row(tmp_path / "rows" / "new.json", row, RIGHT)


@HOW_MANY
def test_any_part_of_a_row(examples: int, tmp_path: Path, add_row: Any) -> None:
    """Where ``check`` finds nothing wrong with a row, all commands take it."""
    add_row("good", 0, RIGHT)
    bad = add_row("bad", 0, ~RIGHT).path
    row = json.loads(bad.read_text())

    def change(case: tuple[tuple[Any, ...], Any]) -> None:
        try:
            reseal(bad, replaced(row, *case))
        except (OverflowError, RecursionError, UnicodeEncodeError, ValueError):
            return
        said = everything(tmp_path)
        sound = not [text for text in check(tmp_path, show=lambda _: None) if text.startswith(bad.name)]
        assert not sound or not any("left out" in text for text in said)
        for a, b in (("good", "bad"), (str(bad), str(bad))):
            with one_line_at_most():
                compare(a, b, rows=tmp_path, show=lambda _: None)

    try_many(examples, st.tuples(st.sampled_from(paths(row)), values), change)


@HOW_MANY
def test_any_bytes_of_a_row(examples: int, tmp_path: Path, add_row: Any) -> None:
    add_row("good", 0, RIGHT)
    bad = add_row("bad", 0, ~RIGHT).path
    content = bad.read_bytes()

    def change(case: tuple[int, bytes]) -> None:
        bad.write_bytes(content[: case[0]] + case[1] + content[case[0] + len(case[1]) :])
        everything(tmp_path)

    try_many(examples, st.tuples(st.integers(0, len(content)), st.binary(max_size=4)), change)


@pytest.mark.slow
@pytest.mark.parametrize(("methods", "seeds"), [(1500, 1), (1, 3000)])
def test_thousands_of_rows(tmp_path: Path, add_row: Any, methods: int, seeds: int) -> None:
    """CPU seconds: other processes may run beside this one."""
    random = np.random.default_rng(0)
    for method in range(methods):
        for seed in range(seeds):
            add_row(f"m{method}", seed, random.random(40) < 0.5)
    start = time.process_time()
    leaderboard(tmp_path, formats=[*FORMATS], show=lambda _: None)
    assert time.process_time() - start < 60


def test_rows_of_fixtures_are_whole() -> None:
    assert whole({"a": {"b": 1}}, {"a": {"b": 2, "c": 3}, "d": 4}) == {"a": {"b": 1, "c": 3}, "d": 4}

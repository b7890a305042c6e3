"""The README shows what the rows say."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_bench.results.leaderboard.table import build
from ssl_bench.results.rows.row import read_rows

ROOT = Path(__file__).parents[1]
SHOWN = [suite for suite in ("quick",) if (ROOT / "results" / suite / "rows").is_dir()]


@pytest.mark.parametrize("suite", SHOWN)
def test_tables_are_those_of_the_rows(suite: str) -> None:
    readme = (ROOT / "README.md").read_text()
    for table in build(read_rows(ROOT / "results" / suite)):
        rows = table.markdown().split("\n\n")[1]
        assert rows in readme, f"paste the table of results/{suite}/LEADERBOARD.md into the README"


def test_install_lines_come_first_and_marks_are_explained_before_the_first_table() -> None:
    text = (ROOT / "README.md").read_text()
    table = text.index("| method |")
    lines = text[:table].splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("make bench"))
    assert lines[first + 1].startswith("pip install . && ssl-bench bench quick")
    for said in (
        "± 95 % interval",
        "In brackets the difference",
        "▲ ▼: ",
        "¹ trained with labels",
        "Patches: ",
        "Time and",
    ):
        assert lines.index(next(line for line in lines if said in line)) > first, said


def test_the_short_table_is_of_the_leaderboard() -> None:
    leaderboard = (ROOT / "results/cifar10-long/LEADERBOARD.md").read_text().splitlines()
    text = (ROOT / "README.md").read_text().split("## What it finds")[1]
    header, _, *lines = (line for line in text.split("![")[0].splitlines() if line.startswith("| "))
    names, rows = [""], []
    for line in leaderboard:  # a table for each backbone, or one with a column for it
        cells = _cells(line)
        names = cells if line.startswith("| method") else names
        rows += [dict(zip(names, cells, strict=True))] if len(cells) == len(names) else []
    assert len(lines) > 6
    for line in lines:
        shown = dict(zip(_cells(header), _cells(line), strict=True))
        assert any(shown.items() <= row.items() for row in rows), line


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]

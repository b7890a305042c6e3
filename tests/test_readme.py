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

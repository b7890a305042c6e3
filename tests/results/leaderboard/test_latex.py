"""LaTeX: what is best, and that nothing in a name is a command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_bench.commands.leaderboard import leaderboard
from ssl_bench.results.leaderboard.latex import escape, latex
from ssl_bench.results.leaderboard.table import build
from ssl_bench.results.rows.row import read_rows

EVIL = '\\input{/etc/passwd} %$&#_{}~^<>|"`é日\x1b'


def right(percent: int) -> np.ndarray[Any, Any]:
    return np.arange(100) < percent


def test_best_and_baseline(tmp_path: Path, add_row: Any) -> None:
    for name, percent in (("a", 40), ("b", 60), ("c", 50)):
        add_row(name, 0, right(percent))
    add_row("baseline", 0, right(90), flags=["labels"])
    text = latex(build(read_rows(tmp_path)))
    assert r"b & \textbf{60.0} {\scriptsize$\pm$\,3.0}" in text and "c & 50.0 " in text
    assert "a & 40.0 " in text and r"baseline\textsuperscript{1} & 90.0" in text


def test_bold_is_what_no_method_is_significantly_better_than(tmp_path: Path, add_row: Any) -> None:
    for name, percent in (("a", 50), ("b", 49), ("c", 40)):
        add_row(name, 0, right(percent))
    (table,) = build(read_rows(tmp_path))
    text = latex([table])
    assert all(rf"\textbf{{{mean}}}" in text for mean in ("50.0", "49.0")) and "c & 40.0 " in text
    assert table.standings["linear"].ranks == [1, 1, 3]
    assert "linear: top1, percent; mean over seeds" in text


def test_missing_cells(tmp_path: Path, add_row: Any) -> None:
    add_row("a", 0, right(50), "knn")
    add_row("b", 0, right(50), "linear")
    text = latex(build(read_rows(tmp_path)))
    assert r"a & \textbf{50.0} {\scriptsize$\pm$\,3.0} & -- & -- \\" in text


def test_every_special_character_is_escaped() -> None:
    text = escape(EVIL)
    assert "\\input" not in text and "\x1b" not in text and text.endswith(r"\textasciigrave{}é?")
    for character in "%$&#_":
        assert f"\\{character}" in text


def test_same_bytes(tmp_path: Path, add_row: Any) -> None:
    add_row(EVIL, 0, right(50))
    (file,) = leaderboard(tmp_path, formats=["latex"], show=lambda _: None)
    assert file.name == "leaderboard.tex"
    first = file.read_bytes()
    assert leaderboard(tmp_path, formats=["latex"], show=lambda _: None)[0].read_bytes() == first


@pytest.mark.slow
def test_compiles(tmp_path: Path, add_row: Any) -> None:
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex")
    add_row(EVIL, 0, right(50), category=EVIL)
    body = latex(build(read_rows(tmp_path)))
    packages = "\\usepackage[T1]{fontenc}\\usepackage{booktabs,textcomp}"
    (tmp_path / "a.tex").write_text(f"\\documentclass{{article}}{packages}\\begin{{document}}\n{body}\\end{{document}}")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "a.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]

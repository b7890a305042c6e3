"""``ssl-bench table``: a paper's table, reported beside measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ssl_bench.results.papers.latex import latex
from ssl_bench.results.papers.matching import ROWS
from ssl_bench.results.papers.published import published
from ssl_bench.results.papers.table import fill
from ssl_bench.results.papers.table_spec import read_definition
from ssl_bench.results.rows.row import Row, read_rows
from ssl_bench.results.text import plain
from ssl_bench.utils.errors import unknown
from ssl_bench.utils.files import write_atomic

FORMATS = {"md": "md", "csv": "csv", "latex": "tex", "terminal": ""}  # format -> how its file's name ends


def table(
    name: str,
    *,
    rows: Sequence[str | Path] | None = None,
    formats: Sequence[str] = ("terminal",),
    out: str | Path | None = None,
    show: Callable[[str], Any] = print,
) -> list[Path]:
    """Show a paper's table: the Python form of ``ssl-bench table``.

    Args:
        name: Of ``ssl-bench list tables``, or a YAML file.
        rows: Folders with ``rows/``; ``ROWS`` where it exists when left out. A row that several have counts once.
        formats: Any of md, csv, latex, terminal; each is shown.
        out: Folder to write NAME.md, NAME.csv and NAME.tex to instead of showing them.
        show: What to do with the text.

    Returns:
        The files written.

    Raises:
        UserError: Unknown table or format, a wrong definition, or no rows in a folder that was named.
    """
    for kind in formats:
        if kind not in FORMATS:
            raise unknown("format", kind, FORMATS)
    folders = list(rows) if rows is not None else [ROWS] * (ROWS / "rows").is_dir()
    found: dict[str, Row] = {}

    def left_out(line: str) -> None:
        show(plain(f"WARNING: {line}"))

    for row in (row for folder in folders for row in read_rows(folder, left_out)):
        found.setdefault(row["id"], row)
    filled = fill(read_definition(name), published(), list(found.values()))
    files = []
    for kind in formats:
        made = {"md": filled.markdown, "csv": filled.csv, "terminal": filled.terminal}
        text = latex(filled) if kind == "latex" else made[kind]()
        if out is not None and kind != "terminal":
            files.append(write_atomic(Path(out) / f"{filled.definition.name}.{FORMATS[kind]}", text + "\n"))
            show(f"wrote {files[-1]}")
        else:
            show(text)
    return files

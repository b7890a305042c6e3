"""``ssl-bench leaderboard``: rank the rows of a folder. The same rows give the same bytes."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ssl_bench.results import exchange
from ssl_bench.results.leaderboard import legends
from ssl_bench.results.leaderboard.selection import Selection, newest
from ssl_bench.results.leaderboard.table import Table, build, to_csv
from ssl_bench.results.rows.row import read_rows
from ssl_bench.results.text import escape, folded, terminal_table
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.utils.files import write_atomic

FORMATS = {"md": "LEADERBOARD.md", "csv": "leaderboard.csv", "html": "leaderboard.html", "latex": "leaderboard.tex"}


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Rows are many small dicts without cycles, which the garbage collector would walk through over and over."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def leaderboard(
    folder: str | Path | Sequence[str | Path],
    *,
    formats: Sequence[str] = ("md",),
    sort: str | None = None,
    selection: Selection = Selection(),  # noqa: B008, it is frozen
    out: str | Path | None = None,
    figures: bool = False,
    runs: str | Path | None = None,
    explain: bool = False,
    show: Callable[[str], None] = print,
) -> list[Path]:
    """Rank the rows of a folder: the Python form of ``ssl-bench leaderboard``.

    A file that is no row is left out, with a line that says why.

    Args:
        folder: Has ``rows/``; or several such folders, whose rows stand in one table, each once.
        formats: Any of md, csv, html, latex; and of the formats of other leaderboards, every-eval-ever, mteb and
            hugging-face, each in a folder of its name (``results.exchange``).
        sort: Evaluation to sort by; linear when left out, or the last where there is none.
        selection: Which rows; what is left of all of them is written under names that start with "selected".
        out: Folder for the files; that of the rows when left out, where there is one.
        figures: Draw the figures into ``figures/``.
        runs: Folder of runs, for the training curves.
        explain: Say how each number is made as well.
        show: What to do with each line of the terminal table.

    Returns:
        The files written.

    Raises:
        UserError: No rows, several folders without ``out``, or an unknown format, evaluation or name.
    """
    folders = [folder] if isinstance(folder, str | Path) else list(folder)
    if len(folders) != 1 and out is None:
        raise UserError("a table of several folders needs a place of its own: --out DIR")
    for name in formats:
        if name not in FORMATS | exchange.FORMATS:
            raise unknown("format", name, [*FORMATS, *exchange.FORMATS])
    read = [row for each in folders for row in read_rows(each, lambda line: show(f"WARNING: {line}"))]
    rows = list({row["id"]: row for row in read}.values())
    rows = newest(selection.rows(rows), lambda line: show(folded(f"WARNING: {line}")))
    tables = build(rows, sort)
    tables = [replace(table, aggregates=selection.best(table.aggregates)) for table in tables]
    if not tables:
        raise UserError(f"no rows in {', '.join(map(str, folders))}")
    show(folded(" ".join([legends.SHORT, *dict.fromkeys(note for table in tables for note in table.footnotes)])))
    if selection.text():
        show(folded(f"Only {selection.text()}."))
    for table in tables:
        show("")
        show(table.terminal())
        show(terminal_table("Ranks", *table.ranks(seeds=False)))
        for text in [*table.teachers, *(f"WARNING: {text}" for text in table.warnings)]:
            show(folded(text))
    if explain:
        show("")
        for text in (legends.INTERVALS, legends.DIFFERENCES, legends.COSTS, legends.ranks(_tasks(tables))):
            show(folded(text))
    files, place = [], Path(out or folders[0])
    prefix = "" if selection.everything else "selected-"
    if figures:
        from ssl_bench.results.leaderboard.figures import draw  # matplotlib takes a second

        files += draw(tables, place / f"{prefix}figures", runs, show)
    links = [path.relative_to(place).as_posix() for path in files if path.suffix == ".svg"]
    for kind in (name for name in formats if name in exchange.FORMATS):
        found = exchange.FORMATS[kind](rows)
        show(f"{kind}: {len(found):,} files in {place / (prefix + kind)}" if found else f"{kind}: {exchange.NOTHING}")
        for name, text in found.items():
            write_atomic(place / f"{prefix}{kind}" / name, text)
    for kind in (name for name in reversed(formats) if name in FORMATS):
        path = place / f"{prefix}{FORMATS[kind]}"
        files.insert(0, write_atomic(path, render(kind, tables, selection.text(), runs, links)))
    for file in files:
        show(f"wrote {file}")
    return files


def render(
    kind: str,
    tables: Sequence[Table],
    selected: str = "",
    runs: str | Path | None = None,
    figures: Sequence[str] = (),
) -> str:
    """A file of the leaderboard.

    Args:
        kind: Of ``FORMATS``.
        tables: Of ``build``.
        selected: What is shown of the rows; everything when empty.
        runs: Folder of runs, for the learning curves of the HTML page.
        figures: Files that it links to.
    """
    if kind == "csv":
        return to_csv(tables)
    if kind == "html":
        from ssl_bench.results.leaderboard.html import page

        return page(tables, selected, runs, figures)
    if kind == "latex":
        from ssl_bench.results.leaderboard.latex import latex

        return latex(tables, selected)
    only = f"Only {escape(selected)}.\n\n" if selected else ""
    text = "\n\n".join(table.markdown() for table in tables)
    return f"# Leaderboard\n\n{only}{text}\n\n{legends.TABLE}\n\n{legends.ranks(_tasks(tables))}\n"


def _tasks(tables: Sequence[Table]) -> set[str]:
    return {task for table in tables for task in table.tasks.values()}

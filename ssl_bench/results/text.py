"""Tables as Markdown and for a terminal. Names may come from other people's files: nothing in them is markup."""

from __future__ import annotations

import html
import io
import itertools
import json
import re
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

CONTROL = r"[^\S ]|[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
MOST_LINES = 300  # of a table in a terminal
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # the wide ones too: Excel in some locales


def plain(text: str) -> str:
    """Text on one line, without control characters, which could move a terminal's cursor or turn the reading direction.

    Example:
        >>> plain("mae\\n\\x1b[2J \\u202e")
        'mae [2J'
    """
    return re.sub(r"\s+", " ", re.sub(CONTROL, " ", str(text))).strip()


def spreadsheet(value: Any) -> Any:
    """A cell of a CSV file: text that a spreadsheet would run as a formula gets an apostrophe.

    Example:
        >>> spreadsheet("=1+1"), spreadsheet("mae"), spreadsheet(-1.5)
        ("'=1+1", 'mae', -1.5)
    """
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is.

    Example:
        >>> escape("a|b <img> [x](y)")
        'a\\\\|b &lt;img&gt; \\\\[x\\\\](y)'
    """
    return _escape(plain(text))


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(text, quote=False))


def note_markdown(text: str) -> str:
    """Escaped text in which what stands between backticks stays code.

    Example:
        >>> note_markdown("use_this: `a_b`")
        'use\\\\_this: `a_b`'
    """
    parts = plain(text).split("`")
    return "".join(f"`{part}`" if i % 2 and i < len(parts) - 1 else _escape(part) for i, part in enumerate(parts))


def yaml_text(value: Any) -> str:
    """A value as it stands behind KEY= on the command line.

    Example:
        >>> yaml_text(800.0), yaml_text(0.0015), yaml_text(True), yaml_text("mean"), yaml_text([1, 2])
        ('800', '0.0015', 'true', 'mean', '[1, 2]')
    """
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def transposed(header: Sequence[str], body: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table turned about its diagonal, for one that has more columns than lines.

    Example:
        >>> transposed(["method", "knn", "linear"], [["mae", "44.9", "47.1"]])
        (['method', 'mae'], [['knn', '44.9'], ['linear', '47.1']])
    """
    first, *others = zip(header, *body, strict=True)
    return list(first), [list(other) for other in others]


def markdown_table(
    header: Sequence[str], body: Sequence[Sequence[str]], left: int, small: Sequence[bool] | None = None
) -> str:
    """A Markdown table of escaped text.

    Args:
        header: Column names.
        body: Cells of each line.
        left: Columns set to the left; the others are numbers.
        small: Lines set in small type.
    """
    cells = [[escape(cell) for cell in line] for line in body]
    cells = [
        [f"<sub>{cell}</sub>" if dim and cell else cell for cell in line]
        for line, dim in zip(cells, small or [False] * len(cells), strict=True)
    ]
    rule = ["---"] * left + ["--:"] * (len(header) - left)
    rows = [[escape(name) for name in header], rule, *cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def terminal_width() -> int:
    """Characters of a line: of the terminal, or as COLUMNS says; 0, no limit, where the output goes elsewhere."""
    return shutil.get_terminal_size((0, 0)).columns


def folded(text: str, width: int | None = None) -> str:
    """A paragraph in lines of the terminal's width, or of 120 characters where there is none."""
    return textwrap.fill(plain(text), width or terminal_width() or 120, break_long_words=False, break_on_hyphens=False)


def terminal_table(
    title: str,
    header: Sequence[str],
    body: Sequence[Sequence[str]],
    left: int,
    width: int | None = None,
    *,
    spare: Sequence[str] = (),
    keys: int = 1,
    wrap: bool = False,
) -> str:
    """A table for a terminal, at most ``MOST_LINES`` long. No number is broken: columns are left out,
    then the others stand below one another.

    Names at the left are set in several lines where they are longer than a third of the width, or less where the width
    doesn't hold them beside a column of numbers.

    Args:
        title: Above it.
        header: Column names.
        body: Cells of each line.
        left: Columns set to the left; the others are numbers.
        width: Characters of a line; ``terminal_width`` when left out, 0 for no limit.
        spare: Names of the columns that are left out where the width doesn't hold them, the first one first.
        keys: Columns at the left that are repeated where the others stand below one another, or left out where only
            the first one has room beside numbers.
        wrap: Break long texts in cells instead.
    """
    more, body = len(body) - MOST_LINES, body[:MOST_LINES]
    limit = terminal_width() if width is None else width
    shown, out = list(range(len(header))), []
    if limit and wrap:
        body = _names_broken(body, 1, limit // 4)
    elif limit:
        whole, body = body, _names_broken(body, keys, max(20, limit // 3))
        for name in spare:
            if name in header and _width(_grid(header, body, left, shown)) > limit:
                shown.remove(header.index(name))
                out.append(name)

        def fits() -> bool:
            grids = (_grid(header, body, left, [*shown[:keys], at]) for at in shown[keys:])
            return all(_width(grid) <= limit for grid in grids)

        # Names in shorter lines; then numbers stand above what is in brackets behind them; then both.
        stacked = [[cell if at < keys else cell.replace(" (", "\n(") for at, cell in enumerate(line)] for line in whole]
        for cells, share in itertools.product((whole, stacked), (3, 4, 5, 8)):
            if not fits():
                body = _names_broken(cells, keys, limit // share)
        while keys > 1 and not fits():
            keys -= 1
            out.append(header[shown.pop(keys)])
    wide = (lambda _: 0) if wrap or not limit else (lambda shown: _width(_grid(header, body, left, shown)))
    first, rest = shown[:keys], shown[keys:]
    blocks = []
    while rest:
        count = next((n for n in range(len(rest), 1, -1) if wide(first + rest[:n]) <= limit), 1)
        blocks.append(first + rest[:count])
        rest = rest[count:]
    lines = [folded(title, limit or None)]
    for block in blocks or [first]:
        grid = _grid(header, body, left, block, wrap)
        console = Console(width=(limit if wrap and limit else max(limit, _width(grid))), file=io.StringIO())
        console.print(grid)
        lines.append(console.file.getvalue().rstrip())  # type: ignore[attr-defined]
    if more > 0:
        lines.append(f"... and {more:,} more lines")
    if out:
        lines.append(folded(f"Left out for want of width: {', '.join(reversed(out))}.", limit or None))
    return "\n".join(lines)


def _broken(text: str, length: int) -> str:
    """Text in lines of a length, broken at spaces and, in words that are longer, behind "_", "." or "/" alone.

    Example:
        >>> _broken("moby (swin_micro_patch2_window4_32)", 26)
        'moby (swin_micro_patch2_\\nwindow4_32)'
    """
    lines = [""]
    for word in plain(text).split(" "):
        whole = len(word) <= length
        for at, part in enumerate([word] if whole else re.findall(r"[^_./]*[_./]+|[^_./]+", word)):
            space = " " if at == 0 and lines[-1] else ""
            if lines[-1] and len(lines[-1] + space + part) > length:
                lines.append(part)
            else:
                lines[-1] += space + part
    return "\n".join(lines)


def _names_broken(body: Sequence[Sequence[str]], keys: int, length: int) -> list[list[str]]:
    return [[_broken(cell, length) if at < keys else cell for at, cell in enumerate(line)] for line in body]


def _grid(
    header: Sequence[str], body: Sequence[Sequence[str]], left: int, shown: Sequence[int], wrap: bool = False
) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for at in shown:
        name = plain(header[at])
        longest = max(
            map(len, [*name.split(), *(plain(part) for line in body for part in line[at].split("\n"))]), default=1
        )
        name = "\n".join(textwrap.wrap(name, longest, break_on_hyphens=False))  # headings are broken, cells never
        table.add_column(
            Text(name), justify="left" if at < left else "right", no_wrap=not wrap or at == 0, overflow="fold"
        )
    for line in body:
        table.add_row(*(Text("\n".join(map(plain, line[at].split("\n")))) for at in shown))
    return table


def _width(table: Table) -> int:
    """Characters that a table takes with no cell broken."""
    return Console(width=10_000).measure(table).maximum

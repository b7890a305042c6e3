"""Tables as Markdown and for a terminal. Names may come from other people's files: nothing in them is markup."""

from __future__ import annotations

import html
import io
import json
import re
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


def terminal_table(
    title: str, header: Sequence[str], body: Sequence[Sequence[str]], left: int, width: int | None = None
) -> str:
    """A table for a terminal; at least 150 characters wide when ``width`` is left out, at most ``MOST_LINES`` long."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for at, name in enumerate(header):
        longest = max(map(len, name.split()), default=1)
        table.add_column(Text(plain(name)), justify="left" if at < left else "right", no_wrap=at < 2, min_width=longest)
    for line in body[:MOST_LINES]:
        table.add_row(*(Text(plain(cell)) for cell in line))
    console = Console(width=width or max(Console().width, 150), file=io.StringIO(), force_terminal=False)
    console.print(Text(plain(title), style="italic"))  # not the table's own title, which wraps at its width
    console.print(table)
    if len(body) > MOST_LINES:
        console.print(Text(f"... and {len(body) - MOST_LINES:,} more lines"))
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined]

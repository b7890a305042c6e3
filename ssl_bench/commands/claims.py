"""``ssl-bench claims``: claims about methods, answered by the rows of a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ssl_bench.results.claims import FILE, HEADER, Answer, answers, details, lines, notes, read_claims
from ssl_bench.results.leaderboard.table import Table, build
from ssl_bench.results.rows.row import read_rows
from ssl_bench.results.text import escape, folded, markdown_table, plain, terminal_table
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import write_atomic

PAGE = "CLAIMS.md"


def claims(
    folder: str | Path,
    *,
    file: str | Path | None = None,
    out: str | Path | None = None,
    show: Callable[[str], Any] = print,
) -> list[Answer]:
    """Answer the claims of a file by the rows of a folder: the Python form of ``ssl-bench claims``.

    Writes ``CLAIMS.md``.

    Args:
        folder: Has ``rows/``.
        file: YAML of the claims; ``claims.yaml`` of the folder when left out.
        out: Folder for the page; that of the rows when left out.
        show: What to do with each block of text.

    Returns:
        One answer for each evaluation of each claim.

    Raises:
        UserError: No rows, or not such a file.
    """
    path = Path(file) if file else Path(folder) / FILE
    tables = build(read_rows(folder, lambda line: show(plain(f"WARNING: {line}"))))
    if not tables:
        raise UserError(f"no rows in {folder}")
    found = answers(read_claims(path), tables)
    show(terminal_table("Claims", HEADER, lines(found), 4, wrap=True))
    for text in notes(found):
        show(folded(text))
    show(f"wrote {write_atomic(Path(out or folder) / PAGE, page(found))}")
    return found


def render(path: Path, tables: Sequence[Table]) -> str:
    """The page of a file of claims."""
    return page(answers(read_claims(path), tables))


def page(found: Sequence[Answer]) -> str:
    """Markdown."""
    blocks = ["# Claims", markdown_table(HEADER, lines(found), 4)]
    for claim in dict.fromkeys(answer.claim for answer in found):
        source = f" ({escape(claim.source)})" if claim.source else ""
        on = f" On {escape(claim.backbone)} alone." if claim.backbone else ""
        texts = [(a.evaluation, details(a)) for a in found if a.claim == claim and not a.missing]
        if texts:
            blocks.append(f"**{escape(claim.text)}**{source}.{on}")
            blocks.append("\n".join(f"- {escape(name)}: {escape(text)}" for name, text in texts))
    return "\n\n".join([*blocks, *notes(found)]) + "\n"

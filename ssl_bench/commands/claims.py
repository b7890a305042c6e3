"""``ssl-bench claims``: claims about methods, answered by the rows of a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_bench.results.claims import FILE, Answer, answers, read_claims
from ssl_bench.results.leaderboard.selection import newest
from ssl_bench.results.leaderboard.table import Table, build
from ssl_bench.results.rows.row import read_rows
from ssl_bench.results.text import escape, folded, markdown_table, plain, terminal_table
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import write_atomic

PAGE = "CLAIMS.md"
HEADER = ["claim", "evaluation", "answer", "result", "p", "seeds"]


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
    rows = read_rows(folder, lambda line: show(plain(f"WARNING: {line}")))
    tables = build(newest(rows, lambda line: show(folded(f"WARNING: {line}"))))
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
        texts = [(a.where, details(a)) for a in found if a.claim == claim and not a.missing]
        if texts:
            blocks.append(f"**{escape(claim.text)}**{source}.{on}")
            blocks.append("\n".join(f"- {escape(name)}: {escape(text)}" for name, text in texts))
    return "\n\n".join([*blocks, *notes(found)]) + "\n"


def lines(found: Sequence[Answer]) -> list[list[str]]:
    """The answers as text, in the order of ``HEADER``."""
    return [[answer.claim.text, answer.where, answer.verdict, *_result(answer)] for answer in found]


def _result(answer: Answer) -> list[str]:
    if answer.missing:
        return ["–", "–", "–"]
    p = "< 0.001" if answer.p < 0.001 else f"{answer.p:.3f}"
    if answer.claim.predictor:
        return [f"rank correlation {answer.value:+.2f}", p, str(answer.seeds)]
    return [f"{answer.value:+.1f} ± {answer.half:.1f} points", p, str(answer.seeds)]


def details(answer: Answer) -> str:
    """Which methods an answer compares, with their values; for a predictor, what it would have chosen."""
    if answer.missing or answer.higher is None or answer.lower is None:
        return ""
    if answer.claim.predictor:
        chosen = max(answer.higher, key=answer.higher.__getitem__)
        best = max(answer.lower, key=answer.lower.__getitem__)
        return (
            f"Over {len(answer.higher)} methods. It would have chosen {chosen} ({answer.lower[chosen]:.1f}); "
            f"the best is {best} ({answer.lower[best]:.1f})."
        )
    ahead = sum(a > b for a in answer.higher.values() for b in answer.lower.values())
    pairs = len(answer.higher) * len(answer.lower)
    return f"{_values(answer.higher)} against {_values(answer.lower)}; the first ahead in {ahead} of {pairs} pairs."


def _values(values: Mapping[str, float]) -> str:
    return ", ".join(f"{label} {value:.1f}" for label, value in values.items())


def notes(found: Sequence[Answer]) -> Iterator[str]:
    """How the answers are made, and what they can't say."""
    yield (
        "Answer: of a two-sided test at 5 %, p adjusted by Holm's method over all answers of this page. Result: the "
        "mean of the methods of one group minus that of the other, with its 95 % interval, paired over test images, "
        "with the variance over seeds; or Spearman's rank correlation over methods. The methods are those of this page "
        "and no sample of all methods."
    )
    if any(answer.seeds == 1 for answer in found):
        yield (
            "Where a method has one seed, the answer is about these encoders: what another seed would have given is "
            "not in its interval."
        )

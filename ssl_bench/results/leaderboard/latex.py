"""The leaderboard in LaTeX (booktabs). Names come from files of others: nothing in them is a command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssl_bench.results.leaderboard import warnings
from ssl_bench.results.text import plain, turned

if TYPE_CHECKING:
    from ssl_bench.results.leaderboard.table import Table

SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "–": "--",
    "±": r"$\pm$",
    "¹": r"\textsuperscript{1}",
    "²": r"\textsuperscript{2}",
    "³": r"\textsuperscript{3}",
    "⁴": r"\textsuperscript{4}",
    "▲": r"\textuparrow{}",
    "▼": r"\textdownarrow{}",
    "▽": r"(\textdownarrow)",
}
NOTE = (
    "Accuracies in percent, mean over seeds; small: 95\\,\\% interval over seeds and test images. "
    "Best in bold, second underlined, among methods without labels."
)


def escape(text: str) -> str:
    r"""Text that LaTeX sets as it is; what its standard fonts lack becomes a question mark.

    Example:
        >>> print(escape("50% of \\input{a_b} 日本"))
        50\% of \textbackslash{}input\{a\_b\} ??
    """
    safe = "".join(SPECIAL.get(character, character) for character in plain(text))
    return re.sub(r"[^\x20-\x7e\u00a1-\u00ff]", "?", safe)


def latex(tables: Sequence[Table], selected: str = "") -> str:
    """One ``table`` environment for each table; needs only booktabs.

    Args:
        tables: Of ``build``.
        selected: What is shown of the rows, for the captions.
    """
    blocks = [_table(table, number, selected) for number, table in enumerate(tables, start=1)]
    return "% \\usepackage[T1]{fontenc} \\usepackage{booktabs,textcomp}\n" + "\n".join(blocks)


def _table(table: Table, number: int, selected: str) -> str:
    places = {evaluation: _places(table, evaluation) for evaluation in table.evaluations}
    lines = []
    for index, line in enumerate(table.aggregates):
        row = [escape(line.label + line.marks)]
        for evaluation in table.evaluations:
            cell = line.cell(evaluation)
            mark = escape(warnings.arrow(table, index, evaluation))
            row.append(_score(cell.mean, cell.half, places[evaluation].get(index, 0)) + mark if cell else "--")
        mean = table.mean_ranks[index]
        lines.append([*row, "--" if mean is None else f"{mean:.2f}"])
    header = ["Method", *map(escape, table.evaluations), "mean rank"]
    if table.wide:
        header, lines = turned(header, lines)
    only = f" Only {escape(selected)}." if selected else ""
    notes = [*table.marks, *([warnings.LEGEND] if table.untrained else [])]
    said = [*map(escape, notes), *(rf"\textbf{{{escape(text)}}}" for text in warnings.notes(table))]
    marks = [rf"\par\smallskip{{\footnotesize {text}\par}}" for text in said]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(table.title)}. {NOTE}{only}}}",
            rf"\label{{tab:leaderboard-{number}}}",
            r"\smallskip",
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\toprule",
            " & ".join(header) + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}",
            *marks,
            r"\end{table}",
            "",
        ]
    )


def _places(table: Table, evaluation: str) -> dict[int, int]:
    """Aggregate to 1 (best) or 2 (second) by the printed mean; equal prints share a place."""
    if evaluation not in table.standings:  # not better the larger it is
        return {}
    means = {
        index: round(line.cells[evaluation].mean, 1)
        for index, line in enumerate(table.aggregates)
        if evaluation in line.cells and not line.labelled
    }
    order = sorted(set(means.values()), reverse=True)
    places = {index: order.index(mean) + 1 for index, mean in means.items()}
    tied = list(places.values()).count(1) > 1
    return {index: place for index, place in places.items() if place == 1 or (place == 2 and not tied)}


def _score(mean: float, half: float, place: int) -> str:
    number = f"{mean:.1f}"
    styled = {1: rf"\textbf{{{number}}}", 2: rf"\underline{{{number}}}"}.get(place, number)
    return rf"{styled} {{\scriptsize$\pm$\,{half:.1f}}}"

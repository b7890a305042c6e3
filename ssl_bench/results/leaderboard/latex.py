"""The leaderboard in LaTeX (booktabs). Names may come from other people's files: nothing in them is a command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ssl_bench.results.leaderboard import legends
from ssl_bench.results.leaderboard.table import Table
from ssl_bench.results.text import plain

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


def escape(text: str) -> str:
    r"""Text that LaTeX sets as it is; what its standard fonts lack becomes a question mark.

    Example:
        >>> print(escape("50% of \\input{a_b} 日本"))
        50\% of \textbackslash{}input\{a\_b\} ??
    """
    safe = "".join(SPECIAL.get(character, character) for character in plain(text))
    return re.sub(r"[^\x20-\x7e\u00a1-\u00ff]", "?", safe)


@dataclass(frozen=True)
class Score:
    """A cell with a number."""

    mean: str
    half: str
    best: bool
    arrow: str


def latex(tables: Sequence[Table], selected: str = "") -> str:
    """One ``table`` environment for each table; needs only booktabs.

    Args:
        tables: Of ``build``.
        selected: What is shown of the rows, for the captions.
    """
    template = _environment().get_template("leaderboard.tex.jinja")
    return template.render(tables=[_table(table) for table in tables], selected=selected)


def _environment() -> Environment:
    """Delimiters that LaTeX has no use for; what stands between them is escaped for LaTeX, then no more for HTML."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(escape(str(value))),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _table(table: Table) -> dict[str, Any]:
    about = ["Method", *(["Backbone"] if table.backbones else [])]
    lines: list[list[str | Score]] = [[*about, *table.headings, "mean rank"]]
    for index, aggregate in enumerate(table.aggregates):
        line: list[str | Score] = [aggregate.label + aggregate.footnotes, *table.backbones[index : index + 1]]
        for evaluation in table.evaluations:
            cell, best = aggregate.cell(evaluation), table.is_best(index, evaluation)
            arrow = table.arrow(index, evaluation)
            line.append(Score(f"{cell.mean:.1f}", f"{cell.half:.1f}", best, arrow) if cell else "–")
        mean = table.mean_ranks[index]
        lines.append([*line, "–" if mean is None else f"{mean:.2f}"])
    if table.wide:
        lines = [list(line) for line in zip(*lines, strict=True)]
    return {
        "title": table.title,
        "metrics": table.metrics,
        "best": legends.BEST,
        "left": 1 if table.wide else len(about),
        "header": lines[0],
        "body": lines[1:],
        "notes": [*table.footnotes, *([legends.ARROWS] if table.differences else [])],
        "warnings": table.warnings,
    }

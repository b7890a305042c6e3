"""A paper's table in LaTeX (booktabs), its notes below."""

from __future__ import annotations

from ssl_bench.results.leaderboard.latex import escape
from ssl_bench.results.papers.table import Filled


def latex(filled: Filled) -> str:
    """One ``table`` environment; needs booktabs and graphicx.

    What was measured differs from what was reported by the interval beside it; nothing is bold, because papers print
    no intervals to rank by.
    """
    body, notes = filled.body()
    left = 2 + len(filled.definition.facts)
    lines = [" & ".join(map(escape, line)) + r" \\" for line in [filled.header(), *body]]
    columns = "l" * left + "r" * (len(filled.header()) - left)
    said = [f"[{i}] {note}" for i, note in enumerate(notes, start=1)] + list(filled.about())
    return "\n".join(
        [
            r"% \usepackage[T1]{fontenc} \usepackage{booktabs,textcomp,graphicx}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(filled.definition.title)}. {escape(filled.units)}}}",
            rf"\label{{tab:{filled.definition.name}}}",
            r"\smallskip",
            rf"\resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}}",
            *(rf"\par\smallskip{{\footnotesize {escape(text.replace('`', ''))}\par}}" for text in said),
            r"\end{table}",
        ]
    )

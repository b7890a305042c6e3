"""The leaderboard: one line a method, from rows alone. The same rows give the same bytes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ssl_bench.results.leaderboard import significance, warnings
from ssl_bench.results.leaderboard.aggregate import (
    SPENT,
    cost_texts,
    quick_hash,
    seed_of,
    seed_values,
    teacher_texts,
    trained,
)
from ssl_bench.results.leaderboard.aggregate import Aggregate as Aggregate
from ssl_bench.results.leaderboard.aggregate import Cell as Cell
from ssl_bench.results.leaderboard.aggregate import aggregate_rows as aggregate_rows
from ssl_bench.results.leaderboard.aggregate import summarise as summarise
from ssl_bench.results.leaderboard.significance import Standing
from ssl_bench.results.rows.row import Row
from ssl_bench.results.text import escape, markdown_table, plain, spreadsheet, terminal_table, turned
from ssl_bench.utils.errors import UserError, unknown

MARKS = {
    "¹": "¹ trained with labels, or with a teacher that was.",
    "²": "² made by another version of its source than the present one.",
    "³": "³ with data, weights or a teacher from elsewhere.",
    "⁴": "⁴ with a warning, which stands with the table.",
}
WIDEST = 6  # evaluations that stand side by side
INTERVALS = """\
Accuracies in percent, mean over seeds ± 95 % interval (Student's t over seeds combined with the binomial interval over
test images; with one seed only the latter)."""
DIFFERENCES = f"In brackets the difference from the untrained backbone.\n{warnings.LEGEND}"
COSTS = """\
Everything is chosen on images held out of the training set; the test split is used once. Patches: encoded with gradient
for one image, all views together; in brackets those of a momentum encoder or teacher. FLOPs: matrix products of the
whole pre-training. Time and memory: of one pre-training run on the device named."""
LEGEND = f"{INTERVALS}\n{DIFFERENCES}\n{COSTS}"


@dataclass(frozen=True)
class Table:
    """Lines that may stand side by side: one test set, one backbone, one version of each evaluation."""

    title: str
    evaluations: list[str]
    aggregates: list[Aggregate]

    @property
    def wide(self) -> bool:
        """Whether methods are columns and evaluations lines: a page holds about six evaluations side by side."""
        return len(self.evaluations) > max(WIDEST, len(self.aggregates))

    @property
    def marks(self) -> list[str]:
        """What the footnote marks of its lines mean."""
        found = "".join(line.marks for line in self.aggregates)
        return [text for mark, text in MARKS.items() if mark in found]

    @cached_property
    def standings(self) -> dict[str, Standing]:
        """The ranks of each evaluation."""
        return significance.standings(self)

    @cached_property
    def mean_ranks(self) -> list[float | None]:
        """Mean rank of each line; None where an evaluation is missing."""
        return significance.mean_ranks(self.standings, len(self.aggregates))

    @cached_property
    def untrained(self) -> Aggregate | None:
        """The line that the others are compared with."""
        return next((line for line in self.aggregates if line.first["method"] == "untrained"), None)

    def cells(self) -> tuple[list[str], list[list[str]], int]:
        """Header, lines and left columns of the table as text."""
        out = []
        for index, line in enumerate(self.aggregates):
            row = [line.label + line.marks, line.first["category"] or ""]
            for evaluation in self.evaluations:
                base = self.untrained.cell(evaluation) if self.untrained and line is not self.untrained else None
                row.append(_score(line.cell(evaluation), base, warnings.arrow(self, index, evaluation)))
            row.append(str(len({seed_of(r) for r in line.rows})))
            out.append(row + cost_texts(line))
        header = ["method", "category", *self.evaluations, "seeds", *SPENT]
        return (*turned(header, out), 1) if self.wide else (header, out, 2)

    def ranks(self, seeds: bool = True) -> tuple[list[str], list[list[str]], int]:
        """Header, lines and left columns of the table of ranks, with the value of each seed; the best first."""
        header = ["method", "mean rank"]
        for evaluation in self.evaluations:
            header += [f"{evaluation} rank", f"{evaluation} by seed"] if seeds else [evaluation]
        lines = []
        order = sorted(range(len(self.aggregates)), key=lambda i: (self.mean_ranks[i] or math.inf, i))
        for index in order:
            line, mean = self.aggregates[index], self.mean_ranks[index]
            texts = [line.label + line.marks, "–" if mean is None else f"{mean:.2f}"]
            for evaluation in self.evaluations:
                standing = self.standings.get(evaluation)
                texts.append(standing.text(index) if standing else "–")
                if seeds:
                    texts.append(seed_values(line.by_evaluation.get(evaluation, [])))
            lines.append(texts)
        return (*turned(header, lines), 1) if self.wide else (header, lines, 1)

    def terminal(self, width: int | None = None) -> str:
        """For a terminal."""
        return terminal_table(self.title, *self.cells(), width)

    def markdown(self) -> str:
        """For a Markdown page, with the deviations and warnings below."""
        notes = [
            f"- {escape(line.label)}: {escape(text)}" for line in self.aggregates for text in line.first["deviations"]
        ]
        teachers = self.teachers()
        devices = sorted({r["pretraining"]["device"] for line in self.aggregates for r in line.rows if trained(r)})
        text = f"## {escape(self.title)}\n\n{markdown_table(*self.cells())}"
        text += f"\n\nDevice: {escape('; '.join(devices)) or 'none'}."
        text += "".join(f" {mark}" for mark in self.marks)
        if warned := warnings.notes(self):
            text += "\n\nWarnings:\n" + "\n".join(f"- **{escape(line)}**" for line in warned)
        text += f"\n\nRanks and the value of each seed:\n\n{markdown_table(*self.ranks())}"
        if teachers:
            text += "\n\nTeachers:\n" + "\n".join(f"- {escape(line)}" for line in teachers)
        return text + ("\n\nDifferences from the papers:\n" + "\n".join(notes) if notes else "")

    def teachers(self) -> list[str]:
        """One sentence for each target network of its methods."""
        return [text for line in self.aggregates for text in teacher_texts(line)]

    @staticmethod
    def csv(tables: Sequence[Table]) -> str:
        """One line for each method and evaluation, in plain numbers."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        head = ["table", "method", "category", "evaluation", "pooling", "mean", "half_interval_95", "seeds"]
        writer.writerow([*head, "rank", "mean_rank", "values_by_seed", "against_untrained", "warnings"])
        for table in tables:
            for index, line in enumerate(table.aggregates):
                mean = table.mean_ranks[index]
                for evaluation, cell in sorted(line.cells.items()):
                    standing = table.standings.get(evaluation)
                    numbers: list[Any] = [f"{cell.mean:.4f}", f"{cell.half:.4f}", cell.seeds]
                    numbers += [standing.ranks[index] if standing else "", "" if mean is None else f"{mean:.4f}"]
                    seeds = " ".join(
                        f"{row['metrics'][row['headline']]['value']:.4f}" for row in line.by_evaluation[evaluation]
                    )
                    names = [table.title, line.label, line.first["category"], evaluation, cell.pooling]
                    marks = [warnings.arrow(table, index, evaluation), spreadsheet("; ".join(line.warnings))]
                    writer.writerow([*map(spreadsheet, names), *numbers, seeds, *marks])
        return buffer.getvalue()


def build(rows: Sequence[Row], sort: str | None = None) -> list[Table]:
    """Group rows into tables and lines; rows that can't be compared never share a table."""
    tables: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        evaluation = row["evaluation"]
        key = (evaluation["data"], tuple(evaluation["fingerprints"].values()), row["backbone"]["name"])
        tables.setdefault(key, []).append(row)
    built = []
    for (data, _, backbone), members in sorted(tables.items(), key=lambda item: str(item[0])):
        versions: dict[str, set[str]] = {}
        for row in members:
            e = row["evaluation"]
            versions.setdefault(e["name"], set()).add(quick_hash([e["version"], e["settings"]]))
        mixed = [name for name, kinds in versions.items() if len(kinds) > 1]
        if mixed:
            names = plain(f"{', '.join(mixed)} on {data}")
            raise UserError(
                f"the rows of {names} come from different versions or settings of the evaluation; they can't share a "
                "column. Move the older ones out of the folder, or measure them again"
            )
        evaluations = sorted(versions)
        if sort is not None and sort not in evaluations:
            raise unknown("evaluation to sort by", sort, map(plain, evaluations))
        by = sort or ("linear" if "linear" in evaluations else evaluations[-1])
        lines = aggregate_rows(members)
        sources = {line.pretrained_on for line in lines} - {None}
        if len(sources) > 1:
            lines = [
                replace(line, label=f"{line.label}, pre-trained on {line.pretrained_on}")
                if line.pretrained_on not in (None, data)
                else line
                for line in lines
            ]
        lines.sort(key=lambda line: (-(cell.mean if (cell := line.cell(by)) else -math.inf), line.label))
        n = members[0]["evaluation"]["images"]
        title = f"{data} ({n['train']:,} train, {n['test']:,} test images), {backbone}"
        if len(sources) == 1 and sources != {data}:
            title += f", pre-trained on {sources.pop()}"
        built.append(Table(title, evaluations, lines))
    return built


def _score(cell: Cell | None, untrained: Cell | None, arrow: str) -> str:
    if cell is None:
        return "–"
    text = f"{cell.mean:.1f} ± {cell.half:.1f}"
    if untrained is not None:
        text += f" ({cell.mean - untrained.mean:+.1f}{arrow})"
    return f"{text} {cell.pooling}"

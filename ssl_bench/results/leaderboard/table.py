"""The leaderboard: one line for each aggregate, from rows alone. The same rows give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ssl_bench.data.names import DATASETS
from ssl_bench.results.frame import COMPARABLE, to_frame
from ssl_bench.results.leaderboard.aggregate import Aggregate, Cell, aggregate_rows, seed_values
from ssl_bench.results.leaderboard.cost_texts import SPENT, cost_texts, teacher_texts, trained
from ssl_bench.results.leaderboard.differences import Difference, differences, warning_texts
from ssl_bench.results.leaderboard.legends import FOOTNOTES
from ssl_bench.results.leaderboard.significance import ALPHA, Standing, mean_ranks, standings
from ssl_bench.results.rows.row import Row
from ssl_bench.results.text import escape, markdown_table, plain, spreadsheet, terminal_table, transposed
from ssl_bench.utils.errors import UserError, unknown

WIDEST = 6  # evaluations that stand side by side
SPARE = (*reversed(SPENT), "seeds", "category")  # what a narrow terminal leaves out, the first one first
TextTable = tuple[list[str], list[list[str]], int]  # header, body, and how many columns are set to the left


@dataclass(frozen=True)
class Table:
    """Aggregates that may stand side by side: one test set, one version of each evaluation.

    Attributes:
        title: Names the data, and the backbone where there is one alone.
        tasks: Name of each evaluation -> its task, in the order of the columns: those of a task stand together.
        aggregates: In the order of the lines.
    """

    title: str
    tasks: dict[str, str]
    aggregates: list[Aggregate]

    @property
    def evaluations(self) -> list[str]:
        """Names, in the order of the columns."""
        return list(self.tasks)

    @property
    def headings(self) -> list[str]:
        """A heading for each evaluation: its name, after its task where the table has several."""
        several = len(set(self.tasks.values())) > 1
        return [f"{task}: {name}" if several else name for name, task in self.tasks.items()]

    @cached_property
    def backbones(self) -> list[str]:
        """The backbone of each aggregate where they differ; else nothing."""
        names = [each.backbone for each in self.aggregates]
        return names if len(set(names) - {"–"}) > 1 else []

    @property
    def metrics(self) -> str:
        """The metric of each evaluation, in words: "linear, knn: top1, percent"."""
        found: dict[str, list[str]] = {}
        for name, heading in zip(self.evaluations, self.headings, strict=True):
            row = next(each.by_evaluation[name][0] for each in self.aggregates if name in each.cells)
            found.setdefault(metric_text(row), []).append(heading)
        return "; ".join(f"{', '.join(names)}: {metric}" for metric, names in found.items())

    @property
    def wide(self) -> bool:
        """Whether methods are columns and evaluations lines: a page holds about six evaluations side by side."""
        return len(self.tasks) > max(WIDEST, len(self.aggregates))

    @property
    def footnotes(self) -> list[str]:
        """What the marks behind its labels mean."""
        found = "".join(aggregate.footnotes for aggregate in self.aggregates)
        return [text for mark, text in FOOTNOTES.items() if mark in found]

    @cached_property
    def standings(self) -> dict[str, Standing]:
        """The ranks of each evaluation."""
        return standings(self.aggregates, self.evaluations)

    @cached_property
    def mean_ranks(self) -> list[float | None]:
        """Mean rank of each aggregate; None where an evaluation is missing."""
        return mean_ranks(self.standings, len(self.aggregates))

    @cached_property
    def differences(self) -> dict[tuple[int, str], Difference]:
        """(Index of an aggregate, evaluation) -> its difference from the untrained network it started from."""
        return differences(self.aggregates, self.standings)

    @cached_property
    def warnings(self) -> list[str]:
        """A sentence for each thing that the numbers alone would hide."""
        return warning_texts(self.aggregates, self.differences)

    @property
    def teachers(self) -> list[str]:
        """One sentence for each teacher of its methods."""
        return [text for aggregate in self.aggregates for text in teacher_texts(aggregate)]

    @property
    def deviations(self) -> list[str]:
        """One sentence for each deviation of a method from its paper."""
        return [f"{each.label}: {text}" for each in self.aggregates for text in each.first["deviations"]]

    def is_best(self, index: int, evaluation: str) -> bool:
        """Whether an aggregate without labels isn't significantly worse than any other without."""
        standing = self.standings.get(evaluation)
        if standing is None or evaluation not in self.aggregates[index].cells or not self.aggregates[index].competes:
            return False
        mine = self.aggregates[index].cells[evaluation].mean
        return not any(
            each.cells[evaluation].mean > mine and standing.p[index, other] < ALPHA
            for other, each in enumerate(self.aggregates)
            if evaluation in each.cells and each.competes
        )

    def arrow(self, index: int, evaluation: str) -> str:
        """How an aggregate stands to its untrained network: a mark of ``legends.ARROWS``, or nothing."""
        found = self.differences.get((index, evaluation))
        return found.arrow if found else ""

    def numbers(self) -> TextTable:
        """The table as text."""
        body = []
        for index, aggregate in enumerate(self.aggregates):
            texts = [aggregate.label + aggregate.footnotes, *self.backbones[index : index + 1]]
            texts += [aggregate.first["category"] or ""]
            texts += [_score(aggregate.cell(name), self.differences.get((index, name))) for name in self.evaluations]
            body.append([*texts, str(aggregate.seeds), *cost_texts(aggregate)])
        about = ["method", *(["backbone"] if self.backbones else []), "category"]
        header = [*about, *self.headings, "seeds", *SPENT]
        return (*transposed(header, body), 1) if self.wide else (header, body, len(about))

    def ranks(self, seeds: bool = True) -> TextTable:
        """The ranks as text, with the value of each seed; the best first."""
        header = ["method", "mean rank"]
        for heading in self.headings:
            header += [f"{heading} rank", f"{heading} by seed"] if seeds else [heading]
        body = []
        order = sorted(range(len(self.aggregates)), key=lambda i: (self.mean_ranks[i] or math.inf, i))
        for index in order:
            aggregate, mean = self.aggregates[index], self.mean_ranks[index]
            texts = [aggregate.label + aggregate.footnotes, "–" if mean is None else f"{mean:.2f}"]
            for evaluation in self.evaluations:
                standing = self.standings.get(evaluation)
                texts.append(standing.text(index) if standing else "–")
                if seeds:
                    texts.append(seed_values(aggregate.by_evaluation.get(evaluation, [])))
            body.append(texts)
        return (*transposed(header, body), 1) if self.wide else (header, body, 1)

    def terminal(self, width: int | None = None) -> str:
        """For a terminal."""
        return terminal_table(self.title, *self.numbers(), width, spare=SPARE, keys=2 if self.backbones else 1)

    def markdown(self) -> str:
        """For a Markdown page, with the warnings and deviations below."""
        made = [row["pretraining"] for aggregate in self.aggregates for row in aggregate.rows if trained(row)]
        devices = sorted({each["device"] for each in made})
        text = f"## {escape(self.title)}\n\n{markdown_table(*self.numbers())}"
        text += f"\n\nDevice: {escape('; '.join(devices)) or 'none'}."
        text += "".join(f" {footnote}" for footnote in self.footnotes)
        text += _bullets("Warnings", [f"**{escape(warning)}**" for warning in self.warnings])
        text += f"\n\nRanks and the value of each seed:\n\n{markdown_table(*self.ranks())}"
        text += _bullets("Teachers", map(escape, self.teachers))
        return text + _bullets("Differences from the papers", map(escape, self.deviations))

    def frame(self) -> pd.DataFrame:
        """One line for each aggregate and evaluation; accuracies in percent."""
        found: list[dict[str, Any]] = []
        for index, aggregate in enumerate(self.aggregates):
            for evaluation, cell in sorted(aggregate.cells.items()):
                standing, rows = self.standings.get(evaluation), aggregate.by_evaluation[evaluation]
                difference = self.differences.get((index, evaluation))
                values = [row["metrics"][row["headline"]]["value"] for row in rows]
                found.append(
                    {
                        "table": self.title,
                        "method": aggregate.label,
                        "backbone": aggregate.first["backbone"]["name"],
                        "category": aggregate.first["category"],
                        "task": self.tasks[evaluation],
                        "evaluation": evaluation,
                        "metric": rows[0]["headline"],
                        "pooling": cell.pooling,
                        "mean": cell.mean,
                        "half_interval_95": cell.half,
                        "seeds": cell.seeds,
                        "rank": standing.ranks[index] if standing else None,
                        "mean_rank": self.mean_ranks[index],
                        "values_by_seed": " ".join(f"{value:.4f}" for value in values),
                        "untrained": difference and difference.untrained,
                        "difference": difference and difference.points,
                        "against_untrained": difference.arrow if difference else "",
                        "warnings": "; ".join(aggregate.warnings),
                    }
                )
        numbers = ("mean", "half_interval_95", "mean_rank", "untrained", "difference")
        return pd.DataFrame(found).astype({"rank": "Int64", **dict.fromkeys(numbers, "float64")})


def to_csv(tables: Sequence[Table]) -> str:
    """``Table.frame`` of each table, for a spreadsheet: text that it would run as a formula gets an apostrophe."""
    frame = pd.concat([table.frame() for table in tables])
    texts = frame.select_dtypes(exclude="number").columns
    frame[texts] = frame[texts].map(spreadsheet)
    return frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")


def build(rows: Sequence[Row], sort: str | None = None) -> list[Table]:
    """Group rows into tables; rows that can't be compared never share one.

    Args:
        rows: In any order.
        sort: Evaluation to sort by; linear when left out, or the last where there is none.

    Raises:
        UserError: Rows of several versions or settings of one evaluation, or no such evaluation.
    """
    return [_table(rows, part, sort) for _, part in to_frame(rows).groupby(COMPARABLE)] if rows else []


def _table(rows: Sequence[Row], frame: pd.DataFrame, sort: str | None) -> Table:
    data = frame["data"].iloc[0]
    protocols = frame.groupby("evaluation")["protocol"].nunique()
    if mixed := list(protocols.index[protocols > 1]):
        names = plain(f"{', '.join(mixed)} on {data}")
        raise UserError(
            f"the rows of {names} come from different versions or settings of the "
            "evaluation; they can't share a column. Move the older ones out of the folder, or measure them again"
        )
    columns = frame[["task", "evaluation"]].drop_duplicates("evaluation").sort_values(["task", "evaluation"])
    tasks = dict(zip(columns["evaluation"], columns["task"], strict=True))
    if sort is not None and sort not in tasks:
        raise unknown("evaluation to sort by", sort, map(plain, tasks))
    by = sort or ("linear" if "linear" in tasks else list(tasks)[-1])
    aggregates = aggregate_rows(rows, frame)
    sources = sorted({each.pretrained_on for each in aggregates if each.pretrained_on})
    if len(sources) > 1:
        aggregates = [
            replace(each, label=f"{each.label}, pre-trained on {each.pretrained_on}")
            if each.pretrained_on not in (None, data)
            else each
            for each in aggregates
        ]
    aggregates.sort(key=lambda each: (-(cell.mean if (cell := each.cell(by)) else -math.inf), each.label))
    n = rows[frame.index[0]]["evaluation"]["images"]
    title = f"{data}{_source(rows, frame)} ({n['train']:,} train, {n['test']:,} test images)"
    if len(backbones := {each.backbone for each in aggregates if each.backbone != "–"}) == 1:
        title += f", {backbones.pop()}"
    if len(sources) == 1 and sources != [data]:
        title += f", pre-trained on {sources[0]}"
    return Table(title, tasks, aggregates)


def _source(rows: Sequence[Row], frame: pd.DataFrame) -> str:
    """What stands behind the name of a known data set whose images come from somebody's files or code: they may differ.

    Nothing where a row with the same images was asked for by the name itself, or from the hub.
    """
    data, asked = frame["data"].iloc[0], [rows[at]["evaluation"].get("given", "") for at in frame.index]
    known = any(data == name or data.startswith(f"{name}-") for name in DATASETS)
    kinds = {text.partition(":")[0] if ":" in text else "" for text in asked if text}
    if not known or kinds & {"", "hf"}:
        return ""
    places = [f"{kind} files" if kind in ("folder", "parquet", "webdataset") else Path(kind).name for kind in kinds]
    return f" from {plain(' and '.join(sorted(places)))}" if places else ""


def metric_text(row: Row) -> str:
    """The headline of a row, with its unit where that is known: "top1, percent", "rankme"."""
    return f"{row['headline']}, percent" if row.in_percent else str(row["headline"])


def _score(cell: Cell | None, difference: Difference | None) -> str:
    if cell is None:
        return "–"
    text = f"{cell.mean:.1f} ± {cell.half:.1f}"
    if difference is not None:
        text += f" ({difference.points:+.1f}{difference.arrow})"
    return f"{text} {cell.pooling}"


def _bullets(heading: str, texts: Any) -> str:
    body = "\n".join(f"- {text}" for text in texts)
    return f"\n\n{heading}:\n{body}" if body else ""

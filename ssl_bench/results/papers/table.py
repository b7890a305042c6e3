"""Paper tables: the published number, ours, and the difference. Generated from definitions, numbers and rows alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ssl_bench.results.leaderboard.aggregate import Cell, summarise
from ssl_bench.results.leaderboard.legends import FOOTNOTES
from ssl_bench.results.leaderboard.table import SPARE, Table, build
from ssl_bench.results.papers.matching import how_to_fill, matching, measurement, our_metric
from ssl_bench.results.papers.other_data import LEGEND as OWN_LEGEND
from ssl_bench.results.papers.other_data import OwnColumn, own_columns
from ssl_bench.results.papers.published import Number, conflicts
from ssl_bench.results.papers.table_spec import Column, Definition, RowOf
from ssl_bench.results.papers.units import units
from ssl_bench.results.rows.row import Row
from ssl_bench.results.text import escape, folded, markdown_table, note_markdown, plain, spreadsheet, terminal_table
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.versions import registered, stated

LEGEND = (
    "Reported: as the source prints it. Measured: by this software, mean over seeds ± 95 % "
    "interval (see the leaderboard), only where method, settings, backbone, data, epochs, test data and protocol are "
    "the same. Difference: measured minus reported; the interval is that of the measured value, because papers print "
    "none."
)
OF_NUMBER = ("method", "backbone", "pretrain_data", "epochs", "eval_dataset", "metric", "weak")
CSV_COLUMNS = [
    *("table", "method", "backbone", "pretrain_data", "epochs", "eval_dataset", "column", "metric", "reported"),
    *("source", "weak", "measured", "half_interval_95", "difference", "seeds", "unlike", "notes"),
]


@dataclass(frozen=True, eq=False)
class Entry:
    """One cell of a table: a published number, and ours if there is one; otherwise ``missing`` says how to get it."""

    number: Number
    row: RowOf
    column: Column
    rows: list[Row]
    notes: list[str]
    missing: str = ""

    @cached_property
    def measured(self) -> Cell | None:
        """Mean over the seeds."""
        return summarise(self.rows, our_metric(self.number)) if self.rows else None

    @property
    def texts(self) -> list[str]:
        """Reported, measured and difference; only the first where nothing of ours measures the same thing."""
        ours = self.measured
        if not self.column.evaluation:
            return [self.number.value]
        if ours is None:
            return [self.number.value, "–", "–"]
        difference = ours.mean - float(self.number)
        return [self.number.value, f"{ours.mean:.1f} ± {ours.half:.1f}", f"{difference:+.1f} ± {ours.half:.1f}"]


@dataclass(frozen=True)
class Filled:
    """A table with its cells, and the rows of the same methods that don't belong in it."""

    definition: Definition
    cells: list[list[Entry | None]]
    unmatched: list[Row]

    @cached_property
    def tables(self) -> list[Table]:
        """The leaderboards of the rows that don't belong in it."""
        return build(self.unmatched)

    @cached_property
    def own(self) -> list[OwnColumn]:
        """Columns of those rows."""
        numbers = [[entry.number for entry in entries if entry] for entries in self.cells]
        return own_columns(numbers, [bool(row.unlike) for row in self.definition.rows], self.tables)

    @property
    def units(self) -> str:
        """What the published numbers are, and ours beside them: "Accuracies in percent."."""
        return units(entry.number for entries in zip(*self.cells, strict=True) for entry in entries if entry)

    @property
    def compact(self) -> bool:
        """Whether what was reported and what we measured share a cell: with many columns of numbers."""
        return len(self.definition.columns) > 3

    def header(self) -> list[str]:
        """Column names; three for each column of numbers that we can measure, unless the table is compact."""
        names = ["method", "backbone", *self.definition.facts]
        for column in self.definition.columns:
            parts = ("reported", "measured", "difference") if column.evaluation else ("reported",)
            names += [column.label] if self.compact else [f"{column.label}: {part}" for part in parts]
        return names + [column.heading for column in self.own]

    def body(self) -> tuple[list[list[str]], list[str]]:
        """The table as text, and its numbered notes."""
        notes: list[str] = []

        def mark(texts: Sequence[str]) -> str:
            notes.extend(text for text in texts if text not in notes)
            return "".join(f"[{notes.index(text) + 1}]" for text in texts)

        body = []
        for at, (row, entries) in enumerate(zip(self.definition.rows, self.cells, strict=True)):
            first = next((entry.number for entry in entries if entry), None)
            label = row.label or (first.name if first else row.where.get("method", ""))
            label += " °" * bool(row.unlike) + mark([f"not like for like: {row.unlike}"] if row.unlike else [])
            line = [label, _variant(row, [entry.number for entry in entries if entry]), *row.facts.values()]
            for column, entry in zip(self.definition.columns, entries, strict=True):
                texts = entry.texts if entry else [""] * (3 if column.evaluation else 1)
                if entry:
                    texts[0] += mark(entry.notes)
                if entry and entry.missing:
                    texts[1] += mark([entry.missing])
                if self.compact:
                    ours = (
                        f"; ours {texts[1]}" + (f" ({texts[2]})" if entry.rows else "") if entry and texts[1:] else ""
                    )
                    texts = [texts[0] + ours]
                line += texts
            body.append(line + [column.text(at) for column in self.own])
        return body, notes

    def about(self) -> Iterator[str]:
        """What to know before reading."""
        if self.definition.about:
            yield self.definition.about
        yield f"{self.units} {LEGEND}"
        if self.own:
            yield " ".join([OWN_LEGEND, *FOOTNOTES.values()])
        yield from (f"{column.label}: {column.note}." for column in self.definition.columns if column.note)

    def markdown(self) -> str:
        """For a Markdown page; names are escaped, the rows that can't be compared are in small type."""
        body, notes = self.body()
        small = [bool(row.unlike) for row in self.definition.rows]
        count = 2 + len(self.definition.facts)
        text = [f"# {escape(self.definition.title)}", "", markdown_table(self.header(), body, count, small), ""]
        text += [note_markdown(f"[{i}] {note}") + "  " for i, note in enumerate(notes, start=1)]
        text += ["", "\n\n".join(escape(paragraph) for paragraph in self.about())]
        for title, table in self.others():
            text += ["", f"## {escape(title)}", "", markdown_table(*table.numbers())]
        return "\n".join(text)

    def terminal(self, width: int | None = None) -> str:
        """For a terminal."""
        body, notes = self.body()
        facts = self.definition.facts
        marks = "[1]: a note below; °: not like for like; –: not measured."
        blocks = [folded(f"{self.units} {marks}", width), ""]
        blocks += [
            terminal_table(self.definition.title, self.header(), body, 2 + len(facts), width, spare=facts, keys=2)
        ]
        blocks += [folded(f"[{i}] {note}", width) for i, note in enumerate(notes, start=1)]
        blocks += ["", *(folded(text, width) for text in self.about())]
        for title, table in self.others():
            blocks += ["", terminal_table(title, *table.numbers(), width, spare=SPARE)]
        return "\n".join(plain(line) if "\n" not in line else line for line in blocks)

    def csv(self) -> str:
        """One line for each number, for a spreadsheet: text that it would run as a formula gets an apostrophe."""
        found: list[dict[str, Any]] = []
        for entry in (entry for entries in self.cells for entry in entries if entry):
            number, ours = entry.number, entry.measured
            line = {name: getattr(number, name) for name in OF_NUMBER}
            line |= {"column": entry.column.label, "reported": number.value, "source": number.cited}
            if ours:
                line |= {"measured": round(ours.mean, 4), "half_interval_95": round(ours.half, 4), "seeds": ours.seeds}
                line |= {"difference": round(ours.mean - float(number), 4)}
            line |= {"unlike": entry.row.unlike, "notes": "; ".join(filter(None, [*entry.notes, entry.missing]))}
            found.append(line)
        found += [line for column in self.own for line in column.records()]
        cells = [[spreadsheet(line.get(name, "")) for name in CSV_COLUMNS] for line in found]
        frame = pd.DataFrame(cells, columns=CSV_COLUMNS, dtype=object).assign(table=spreadsheet(self.definition.name))
        return frame.to_csv(index=False, lineterminator="\n").rstrip("\n")

    def others(self) -> Iterator[tuple[str, Table]]:
        """The same methods measured on something else."""
        for found in self.tables:
            yield f"Measured on something else, not comparable with the above: {found.title}", found


def _variant(row: RowOf, numbers: Sequence[Number]) -> str:
    """The backbone of a row, and what tells it from other rows of the same backbone."""
    backbones = {number.backbone for number in numbers}
    parts = [numbers[0].backbone] if len(backbones) == 1 else []
    parts += [row.where[name] for name in ("pretrain_data", "setting") if row.where.get(name)]
    return ", ".join(parts + ([f"{row.where['epochs']} epochs"] if row.where.get("epochs") else []))


# Filling --------------------------------------------------------------------------------------------------------------


def fill(definition: Definition, numbers: Sequence[Number], rows: Sequence[Row]) -> Filled:
    """Find the published number of every cell, our rows for it, and what to say about it."""
    used: set[Path] = set()
    cells: list[list[Entry | None]] = []
    for row in definition.rows:
        entries: list[Entry | None] = []
        for column in definition.columns:
            number = definition.number(row, column, numbers)
            entry = (
                None if number is None else _entry(number, row, column, numbers, rows, definition.where.get("source"))
            )
            used.update(found.path for found in entry.rows) if entry else None
            entries.append(entry)
        cells.append(entries)
        if not any(entries):
            raise UserError(f"table {definition.name}: no published number for the row {row.where}")
    methods = {entry.number.method for entries in cells for entry in entries if entry}
    methods |= {name for name in registered("method") if stated(f"method {name}", "category") == "baseline"}
    return Filled(definition, cells, [r for r in rows if r.path not in used and r["method"] in methods])


def _entry(
    number: Number, row: RowOf, column: Column, numbers: Sequence[Number], rows: Sequence[Row], source: str | None
) -> Entry:
    wanted = measurement(number, row, column)
    found, notes = matching(wanted, rows) if column.evaluation else ([], [])
    others = conflicts(number, numbers, row.stands_for.get("epochs", ""))
    said: dict[str, list[str]] = {}
    for other in others:
        said.setdefault(other.value, []).append(other.cited)
    about = [] if source in (None, number.source) else [f"from {number.cited}"]  # not the table's own source
    about += [
        f"{number.name} {number.backbone} in other sources: {v} ({'; '.join(places)})" for v, places in said.items()
    ]
    if number.weak:
        about.append("; ".join(filter(None, ["second-hand, superseded or doubtful", number.notes])))
    missing = how_to_fill(wanted) if column.evaluation and not found else ""
    return Entry(number, row, column, found, about + notes, missing)

"""The leaderboard: one line a method, from rows alone. The same rows give the same bytes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ssl_bench.errors import UserError, unknown
from ssl_bench.files import content_hash, write_atomic
from ssl_bench.results.rows import Row, read_rows

FORMATS = ("md", "csv")
MARKS = (
    "¹ trained with labels, or with a teacher that was. ² made by another version of its source than the present one. "
    "³ with data, weights or a teacher from elsewhere."
)
LEGEND = """\
Accuracies in percent, mean over seeds ± 95 % interval (Student's t over seeds combined with the binomial interval over
test images; with one seed only the latter). In brackets the difference from the untrained backbone, ▲ or ▼ where the
two intervals don't overlap. Everything is chosen on images held out of the training set; the test split is used once.
Patches: encoded with gradient for one image, all views together; in brackets those of a momentum encoder or teacher.
FLOPs: matrix products of the whole pre-training. Time and memory: of one pre-training run on the device named."""


@dataclass(frozen=True)
class Cell:
    """Mean over seeds with a 95 % interval; NaN without a value."""

    mean: float
    half: float
    seeds: int
    pooling: str = ""

    def apart(self, other: Cell) -> bool:
        """Whether the intervals don't overlap."""
        return abs(self.mean - other.mean) > self.half + other.half


@dataclass(frozen=True)
class Line:
    """One method under one recipe on one backbone: rows of several seeds and evaluations."""

    label: str
    rows: list[Row]

    @property
    def first(self) -> Row:
        """A row for everything that all of them share."""
        return self.rows[0]

    def cell(self, evaluation: str, metric: str | None = None) -> Cell | None:
        """A metric of an evaluation over the seeds; its headline unless named. None when no row has it."""
        rows = [row for row in self.rows if row["evaluation"]["name"] == evaluation]
        return summarise(rows, metric) if rows else None


def leaderboard(
    folder: str | Path,
    *,
    formats: Sequence[str] = ("md",),
    sort: str | None = None,
    show: Callable[[str], None] = print,
) -> list[Path]:
    """Rank the rows of a folder: the Python form of ``ssl-bench leaderboard``.

    Args:
        folder: Has ``rows/``; the files are written beside it.
        formats: Any of md, csv.
        sort: Evaluation to sort by; linear when left out, or the last where there is none.
        show: What to do with each line of the terminal table.

    Returns:
        The files written.

    Raises:
        UserError: No rows, or an unknown format or evaluation.
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)
    tables = build(read_rows(folder), sort)
    if not tables:
        raise UserError(f"no rows in {folder}")
    for table in tables:
        show(table.terminal())
        for line in table.targets():
            show(line)
    show(LEGEND)
    files = []
    if "md" in formats:
        text = "# Leaderboard\n\n" + "\n\n".join(table.markdown() for table in tables)
        files.append(write_atomic(Path(folder) / "LEADERBOARD.md", f"{text}\n\n{LEGEND}\n"))
    if "csv" in formats:
        files.append(write_atomic(Path(folder) / "leaderboard.csv", tables[0].csv(tables)))
    for file in files:
        show(f"wrote {file}")
    return files


@dataclass(frozen=True)
class Table:
    """Lines that may stand side by side: one test set, one backbone, one version of each evaluation."""

    title: str
    evaluations: list[str]
    lines: list[Line]

    @property
    def header(self) -> list[str]:
        """Column names."""
        return [
            "method",
            "category",
            *self.evaluations,
            "seeds",
            "views",
            "epochs",
            "patches",
            "FLOPs",
            "time",
            "memory",
        ]

    def cells(self) -> list[list[str]]:
        """The table as text."""
        untrained = next((line for line in self.lines if line.first["method"] == "untrained"), None)
        out = []
        for line in self.lines:
            row = [line.label + _marks(line), line.first["category"] or ""]
            for evaluation in self.evaluations:
                base = untrained.cell(evaluation) if untrained and line is not untrained else None
                row.append(_score(line.cell(evaluation), base))
            row.append(str(len({(r["recipe"] or {}).get("seed") for r in line.rows})))
            out.append(row + _cost(line))
        return out

    def terminal(self, width: int | None = None) -> str:
        """For a terminal."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table as RichTable

        table = RichTable(title=self.title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
        for i, name in enumerate(self.header):
            table.add_column(name, justify="left" if i < 2 else "right", no_wrap=i == 0)
        for row in self.cells():
            table.add_row(*(cell.replace("[", "\\[") for cell in row))
        console = Console(width=width, file=io.StringIO(), force_terminal=False)
        if width is None:
            console.width = max(Console().width, 150)
        console.print(table)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]

    def markdown(self) -> str:
        """For a Markdown page, with the deviations and warnings below."""
        rows = [self.header, ["---"] * 2 + ["--:"] * (len(self.header) - 2), *self.cells()]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
        notes = [f"- {line.label}: {text}" for line in self.lines for text in line.first["deviations"]]
        targets = self.targets()
        devices = sorted({r["pretraining"]["device"] for line in self.lines for r in line.rows if _trained(r)})
        text = f"## {self.title}\n\n{table}\n\nDevice: {'; '.join(devices) or 'none'}."
        if any(_marks(line) for line in self.lines):
            text += f" {MARKS}"
        if targets:
            text += "\n\nTarget networks:\n" + "\n".join(f"- {line}" for line in targets)
        return text + ("\n\nDifferences from the papers:\n" + "\n".join(notes) if notes else "")

    def targets(self) -> list[str]:
        """One sentence for each target network: what it is, what it cost, and how its codes are used."""
        said = []
        for line in self.lines:
            spent = line.first["pretraining"] or {}
            for keyword, target in spent.get("targets", {}).items():
                facts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in target["facts"].items())
                said.append(
                    f"{line.label}: {keyword} {target['method']}, trained on the same images in "
                    f"{target['wall_seconds']:.0f} s and {target['flops']:.1e} FLOPs, which come on top; {facts}"
                )
            if not spent.get("targets") and "teacher" in spent.get("facts", {}):
                about = spent["facts"]["teacher"]
                said.append(f"{line.label}: teacher {about['name']}, {about['source']}")
        return said

    @staticmethod
    def csv(tables: Sequence[Table]) -> str:
        """One line for each method and evaluation, in plain numbers."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["table", "method", "category", "evaluation", "pooling", "mean", "half_interval_95", "seeds"])
        for table in tables:
            for line in table.lines:
                for evaluation in table.evaluations:
                    cell = line.cell(evaluation)
                    if cell:
                        numbers = [f"{cell.mean:.4f}", f"{cell.half:.4f}", cell.seeds]
                        row = [table.title, line.label, line.first["category"], evaluation, cell.pooling, *numbers]
                        writer.writerow([_no_formula(value) for value in row])
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
            versions.setdefault(e["name"], set()).add(content_hash([e["version"], e["settings"]]))
        mixed = [name for name, kinds in versions.items() if len(kinds) > 1]
        if mixed:
            raise UserError(
                f"the rows of {', '.join(mixed)} on {data} come from different versions or settings of the evaluation; "
                "they can't share a column. Move the older ones out of the folder, or measure them again"
            )
        evaluations = sorted(versions)
        if sort is not None and sort not in evaluations:
            raise unknown("evaluation to sort by", sort, evaluations)
        by = sort or ("linear" if "linear" in evaluations else evaluations[-1])
        lines = make_lines(members)
        lines.sort(key=lambda line: (-(cell.mean if (cell := line.cell(by)) else -math.inf), line.label))
        n = members[0]["evaluation"]["images"]
        title = f"{data} ({n['train']:,} train, {n['test']:,} test images), {backbone}"
        built.append(Table(title, evaluations, lines))
    return built


def make_lines(rows: Sequence[Row]) -> list[Line]:
    """Rows that differ only in seed and evaluation form a line; a method with two recipes has two lines."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        recipe = {k: v for k, v in (row["recipe"] or {}).items() if k not in ("seed", "hash")}
        images = (row["pretraining"] or {}).get("fingerprint") if recipe else row["weights"]["sha256"]
        groups.setdefault((row["method"], content_hash([recipe, images])[:6]), []).append(row)
    names = [method for method, _ in groups]
    return [
        Line(method if names.count(method) == 1 else f"{method} ({key})", members)
        for (method, key), members in groups.items()
    ]


def summarise(rows: Sequence[Row], metric: str | None = None) -> Cell:
    """Mean and 95 % interval of one metric over seeds.

    The half-width is sqrt(s^2 + b^2): s of Student's t over the seeds, b the mean half-width over test images.
    """
    metrics = [row["metrics"][metric or row["headline"]] for row in rows]
    values = np.array([m["value"] for m in metrics])
    images = float(np.mean([(m["high"] - m["low"]) / 2 for m in metrics]))
    n = len(values)
    seeds = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)) if n > 1 else 0.0
    poolings = sorted({row["evaluation"]["pooling"] for row in rows})
    return Cell(float(values.mean()), math.hypot(seeds, images), n, "/".join(poolings))


def _score(cell: Cell | None, untrained: Cell | None) -> str:
    if cell is None:
        return "–"
    text = f"{cell.mean:.1f} ± {cell.half:.1f}"
    if untrained is not None:
        difference = cell.mean - untrained.mean
        arrow = ("▲" if difference > 0 else "▼") if cell.apart(untrained) else ""
        text += f" ({difference:+.1f}{arrow})"
    return f"{text} {cell.pooling}"


def _cost(line: Line) -> list[str]:
    made = [row["pretraining"] for row in line.rows if _trained(row)]
    if not made:
        return ["–"] * 6
    first = made[0]
    patches = f"{first['patches_per_image']:g}"
    if first["target_patches_encoded"]:
        patches += f" ({first['target_patches_encoded'] / first['images_seen']:g})"
    seconds = float(np.mean([m["wall_seconds"] for m in made]))
    memory = max(m["peak_memory_bytes"] for m in made)
    return [
        line.first["views"] or "–",
        f"{first['epochs']:g}",
        patches,
        f"{first['flops']:.1e}",
        f"{seconds:.0f} s" if seconds < 6000 else f"{seconds / 3600:.1f} h",
        f"{memory / 1e6:,.0f} MB",
    ]


def _trained(row: Row) -> bool:
    return bool(row["pretraining"] and row["pretraining"]["images_seen"])


def _marks(line: Line) -> str:
    flags = line.first["flags"]
    external = any(flag.startswith("external") for flag in flags)
    stale = any(row.stale for row in line.rows)
    return "".join(mark for mark, shown in (("¹", "labels" in flags), ("²", stale), ("³", external)) if shown)


def _no_formula(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value

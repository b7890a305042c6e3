"""Sanity gates: what makes a number doubtful is said when it is measured, in its row, and in every table with it.

A feature matrix with NaN or without variance never becomes a row (``evaluations.evaluator.check_features``).
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_bench.errors import RunError
from ssl_bench.files import content_hash, write_atomic
from ssl_bench.results.ranking import ALPHA

if TYPE_CHECKING:
    from ssl_bench.checkpoint import Checkpoint
    from ssl_bench.data import Splits
    from ssl_bench.results.leaderboard import Table

LEGEND = """\
▲ ▼: significantly above or below the untrained backbone, by the test of the ranks; ▽: below it, but not
significantly."""
YARDSTICKS = ("untrained", "raw_pixels")  # not pre-trained: nothing to be warned of


# One evaluation -------------------------------------------------------------------------------------------------------


def warnings(checkpoint: Checkpoint, splits: Splits) -> list[str]:
    """What a row says against itself, also said on standard error."""
    found = []
    if checkpoint.loaded < 100:
        found.append(f"weights loaded {checkpoint.loaded:.4g} %: the rest of the encoder is untrained")
    if (count := count_duplicates(splits)) is not None and count:
        are = "image is also a training image" if count == 1 else "images are also training images"
        found.append(f"{count:,} of {len(splits.test):,} test {are} of {splits.train.name}")
    for text in found:
        print(f"WARNING: {checkpoint.method} on {splits.test.name}: {text}", file=sys.stderr, flush=True)
    return found


def count_duplicates(splits: Splits, folder: Path = Path("runs/duplicates")) -> int | None:
    """``data.duplicates``, counted once for a pair of fingerprints and kept in a file.

    Returns:
        None for images that are decoded on access, which is for sets larger than the memory: to decode all of them
        would take as long as a pass of features.
    """
    from ssl_bench.data import duplicates  # here, so that whoever only reads rows doesn't wait for torch

    if splits.train.streamed or splits.test.streamed:
        return None
    path = folder / content_hash([splits.train.fingerprint, splits.test.fingerprint])[:16]
    if path.is_file():
        return int(path.read_text())
    count = duplicates(splits.train, splits.test)
    with contextlib.suppress(RunError):  # a folder that can't be written: it is counted again the next time
        write_atomic(path, f"{count}\n")
    return count


# A table --------------------------------------------------------------------------------------------------------------


def arrow(table: Table, index: int, evaluation: str) -> str:
    """How a line stands to the untrained backbone in an evaluation: see ``LEGEND``; empty where it can't be said."""
    line, untrained, standing = table.lines[index], table.untrained, table.standings.get(evaluation)
    if untrained is None or line is untrained or standing is None:
        return ""
    cell, base = line.cell(evaluation), untrained.cell(evaluation)
    if cell is None or base is None:
        return ""
    if standing.p[index, table.lines.index(untrained)] < ALPHA:
        return "▲" if cell.mean > base.mean else "▼"
    return "▽" if cell.mean < base.mean else ""


def notes(table: Table) -> list[str]:
    """A sentence for each line that is below the untrained backbone, and for each warning of its rows."""
    said = []
    for index, line in enumerate(table.lines):
        marks = {evaluation: arrow(table, index, evaluation) for evaluation in table.evaluations}
        below = [evaluation for evaluation, mark in marks.items() if mark in ("▼", "▽")]
        if below and table.untrained and line.first["method"] not in YARDSTICKS:
            parts = []
            for evaluation in below:
                mean, base = line.cells[evaluation].mean, table.untrained.cells[evaluation].mean
                how = "" if marks[evaluation] == "▼" else ", not significant"
                parts.append(f"{evaluation} {mean:.1f} against {base:.1f} ({mean - base:+.1f}{how})")
            what = "below the untrained backbone"
            what = what.upper() if "▼" in marks.values() else what
            said.append(f"{line.label} is {what}: {'; '.join(parts)}")
        said += [f"{line.label}: {text}" for text in line.warnings]
    return said

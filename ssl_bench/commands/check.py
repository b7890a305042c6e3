"""Whether the rows of a folder are valid, agree with their predictions, and make the leaderboard beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_bench.commands.claims import PAGE
from ssl_bench.commands.claims import render as render_claims
from ssl_bench.commands.leaderboard import FORMATS, render
from ssl_bench.results.claims import FILE
from ssl_bench.results.frame import protocol_key
from ssl_bench.results.leaderboard.table import build
from ssl_bench.results.rows.contradiction import contradiction
from ssl_bench.results.rows.picture import read_picture
from ssl_bench.results.rows.predictions import predictions_path, read_predictions
from ssl_bench.results.rows.row import Row, checksum_of, read_stored
from ssl_bench.results.rows.schema import violations
from ssl_bench.results.text import plain
from ssl_bench.utils.errors import UserError


def check(folder: str | Path, *, show: Callable[[str], Any] = print) -> list[str]:
    """Check a folder of rows: the Python form of ``ssl-bench check``.

    Args:
        folder: Has ``rows/``.
        show: What to do with each line of the report.

    Returns:
        What is wrong, one line each. Rows that an older version of a component made are named, but not wrong.

    Raises:
        UserError: No such folder.
    """
    place = Path(folder) / "rows"
    if not place.is_dir():
        raise UserError(f"no rows in {folder}: expected {place}/*.json")
    rows, problems, notes = [], [], []
    for path in sorted(place.glob("*.json")):
        row, found = _read(path)
        problems += [f"{path.name}: {text}" for text in found]
        if row is not None:
            rows.append(row)
    problems += [*_together(rows), *_orphans(place, rows), *_defaults(rows)]
    stale = {row.path.name: old for row in rows if (old := row.outdated)}
    notes += [f"{name}: stale, made by {', '.join(old)}" for name, old in stale.items()]
    notes += [f"{row.path.name}: WARNING: {text}" for row in rows for text in row.values.get("warnings", [])]
    if not problems:
        wrong, said = _generated(Path(folder), rows)
        problems, notes = problems + wrong, notes + said
    for text in [*notes, *problems]:
        show(plain(text))
    show(f"{len(rows)} rows, {len(problems)} problems, {len(stale)} stale")
    return problems


# One row --------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[Row | None, list[str]]:
    """A row and what is wrong with it; None where the rest can't be looked at."""
    try:
        stored, values = read_stored(path)
    except UserError as error:
        return None, [str(error).removeprefix(f"{path}: ").removeprefix(f"{path} is not a row: ")]
    found = violations(values)
    if found:
        return None, found
    row = Row(path, values)
    problems = []
    if checksum_of(stored) != stored["checksum"]:
        problems.append("edited after it was written: its checksum is another")
    if wrong := contradiction(values):
        problems.append(wrong)
    if not path.stem.endswith(f"-{values['id']}"):
        problems.append(f"its name doesn't end in its id, {values['id']}")
    return row, [*problems, *_metrics(row), *_predictions(row), *_picture(row)]


def _metrics(row: Row) -> Iterator[str]:
    for name, metric in row["metrics"].items():
        if not metric["low"] <= metric["value"] <= metric["high"]:
            yield f"{name} = {metric['value']} lies outside its interval, {metric['low']} to {metric['high']}"


def _predictions(row: Row) -> Iterator[str]:
    metric = row["metrics"].get(row["headline"])
    if row["predictions"] is None or metric is None:
        return
    try:
        predictions = read_predictions(row)
        if predictions is None:
            yield f"its predictions, {predictions_path(row).name}, are missing"
            return
    except UserError as error:
        yield str(error)
        return
    value = 100 * float(np.mean(predictions))
    if abs(value - metric["value"]) > (1e-5 if predictions.dtype == bool else 0.025):  # half a step of float16 below 1
        yield f"its predictions are right for {value:.4f} %, it says {metric['value']:.4f} %"


def _picture(row: Row) -> Iterator[str]:
    try:
        read_picture(row)
    except UserError as error:
        yield str(error)


def _defaults(rows: Sequence[Row]) -> Iterator[str]:
    # Here, because it takes torch, for which whoever has no sound row needn't wait.
    from ssl_bench.results.rows.defaults import changed_defaults

    for row in rows:
        if not contradiction(row.values):
            yield from (f"{row.path.name}: {text}" for text in changed_defaults(row.values))


# The folder -----------------------------------------------------------------------------------------------------------


def _together(rows: Sequence[Row]) -> Iterator[str]:
    """Rows that don't belong together: of one id, or of several versions of an evaluation."""
    ids: dict[str, str] = {}
    kinds: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for row in rows:
        stated = row["evaluation"]
        other = ids.setdefault(row["id"], row.path.name)
        if other != row.path.name:
            yield f"{row.path.name}: has the id of {other}"
        column = (stated["name"], stated["data"], row["backbone"]["name"], *stated["fingerprints"].values())
        kind = f"version {stated['version']}, settings {protocol_key(row)[:6]}"
        kinds.setdefault(column, {}).setdefault(kind, []).append(row.path.name)
    for column, found in kinds.items():
        if len(found) > 1:
            counts = "; ".join(f"{kind}: {len(names)} rows, e.g. {names[0]}" for kind, names in sorted(found.items()))
            yield f"{column[0]} on {column[1]} comes from several versions or settings ({counts})"


def _orphans(place: Path, rows: Sequence[Row]) -> Iterator[str]:
    known = {row["predictions"] for row in rows}
    for suffix, what in ((".npy", "predictions"), (".png", "a picture")):
        named = known | {path.with_suffix(suffix).name for path in place.glob("*.json")}
        yield from (
            f"{path.name}: {what} of no row" for path in sorted(place.glob(f"*{suffix}")) if path.name not in named
        )


def _generated(folder: Path, rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Problems and notes about the files written from the rows."""
    tables, problems, notes = build(rows), [], []
    if not (folder / FORMATS["md"]).is_file():
        notes.append(f"no {FORMATS['md']}: `ssl-bench leaderboard {folder}` writes it")
    for kind, name in FORMATS.items():
        path = folder / name
        if path.is_file() and _of_rows(path.read_text(errors="replace"), kind) != render(kind, tables):
            problems.append(f"{name} is out of date with its rows: `ssl-bench leaderboard {folder} --format {kind}`")
    path = folder / PAGE
    if path.is_file() and path.read_text(errors="replace") != render_claims(folder / FILE, tables):
        problems.append(f"{PAGE} is out of date with its rows: `ssl-bench claims {folder}`")
    return problems, notes


def _of_rows(text: str, kind: str) -> str:
    """What a page shows of rows alone."""
    if kind != "html":
        return text
    from ssl_bench.results.leaderboard.html import of_rows_alone

    return of_rows_alone(text)

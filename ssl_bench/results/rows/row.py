"""Rows: one immutable JSON file for each number, with everything that defines it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_bench.results.rows.contradiction import contradiction
from ssl_bench.results.rows.schema import LARGEST, ROW, missing_headline, violations
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import content_hash, parse_json, read_regular
from ssl_bench.utils.identity import identify
from ssl_bench.utils.versions import outdated, registered

SCHEMA = 2
# Version of a stored row -> what turns it into the next version. It keeps whatever the row's id follows from.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


@dataclass(frozen=True)
class Row:
    """One row as read: ``row["metrics"]["top1"]["value"]``. The fields are those of ``make_row``."""

    path: Path
    values: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @classmethod
    def read(cls, path: Path) -> Row:
        """Read and check a row; one of an older schema becomes one of the present.

        Raises:
            UserError: Not a row, changed since it was written, or of a newer schema.
        """
        stored, values = read_stored(path)
        if not ROW.accepts(values):
            raise UserError(f"{path} is not a row: {violations(values)[0]}")
        if stored["checksum"] != checksum_of(stored):
            raise UserError(f"{path} was edited after it was written; measure it again")
        if wrong := missing_headline(values):
            raise UserError(f"{path} is not a row: {wrong[0]}")
        if said := contradiction(values):
            raise UserError(f"{path}: {said}")
        return cls(path, values)

    @property
    def outdated(self) -> list[str]:
        """The components that have a newer version today, in words."""
        return outdated(self["versions"])

    @property
    def in_percent(self) -> bool:
        """Whether its headline is known to be in percent: of an evaluator of this package, and not RankMe's directions.

        An evaluator from outside counts in whatever it likes, under any name; its row doesn't say what.
        """
        outside = "source" in self["identity"]["evaluation"]
        own = not outside and self["evaluation"]["evaluator"] in registered("evaluator")
        return own and self["headline"] != "rankme"

    @property
    def stale(self) -> bool:
        """Whether a component that made or evaluated the encoder has a newer version today."""
        return bool(self.outdated)


def read_stored(path: Path) -> tuple[Any, Any]:
    """What a file holds, and the same in the present schema; neither has been checked against it.

    Raises:
        UserError: No regular file of a row's size, no JSON, or a newer schema.
    """
    try:
        stored = parse_json(read_regular(path, LARGEST))
        return stored, migrated(stored) if isinstance(stored, dict) and "schema" in stored else stored
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except (FileNotFoundError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a row: not JSON: {error}") from error


def expected_id(row: Mapping[str, Any]) -> str:
    """The id that follows from the identity in a row (``identity.number_identity``)."""
    return identify(row["identity"])


def row_path(folder: Path, method: str, evaluation: str, identifier: str) -> Path:
    """``FOLDER/rows/mae-knn-1a2b3c4d5e6f7a8b.json``."""
    safe = [re.sub(r"[^A-Za-z0-9_]+", "-", part).strip("-") for part in (method, Path(evaluation).stem)]
    return folder / "rows" / f"{safe[0]}-{safe[1]}-{identifier}.json"


def read_rows(folder: str | Path, left_out: Callable[[str], Any] | None = None) -> list[Row]:
    """All rows below ``FOLDER/rows``, in the order of their file names.

    Args:
        folder: Has ``rows/``.
        left_out: Called with a line about each file that can't be used; if left out, the first is an error.

    Raises:
        UserError: No such folder, or none of its files can be used: each is no row, or one that is there twice, which
            would count as two seeds.
    """
    rows = Path(folder) / "rows"
    if not rows.is_dir():
        raise UserError(f"no rows in {folder}: expected {rows}/*.json, written by `ssl-bench bench` or `evaluate`")
    found: dict[str, Row] = {}
    bad: list[str] = []
    for path in sorted(rows.glob("*.json")):
        try:
            row = Row.read(path)
            if found.setdefault(row["id"], row) is not row:
                raise UserError(f"{path}: has the id of {found[row['id']].path.name}; keep one of the two")
        except UserError as error:
            if left_out is None:
                raise
            bad.append(str(error))
    if bad and not found:
        raise UserError(bad[0])
    if left_out is not None:
        for line in bad:
            left_out(f"left out: {line}")
    return list(found.values())


def migrated(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored row in the present schema; the checksum stays that of the stored form.

    Raises:
        UserError: A newer schema than this version knows, or one that no migration leads on from.
    """
    values = stored
    while (version := values.get("schema")) != SCHEMA:
        if not isinstance(version, int) or version > SCHEMA:
            raise UserError(f"written in row schema {version!r}; this ssl-bench reads up to {SCHEMA}: upgrade it")
        if version not in MIGRATIONS:
            raise UserError(f"written in row schema {version}, which this ssl-bench no longer reads")
        values = {**MIGRATIONS[version](values), "schema": version + 1}
    return values


def checksum_of(values: dict[str, Any]) -> str:
    """Hash of everything in a row but its checksum, 16 hex digits."""
    return content_hash({key: value for key, value in values.items() if key != "checksum"})[:16]

"""Rows: one immutable JSON file for each number, with everything that defines it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_bench.results.rows.contradiction import contradiction
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import content_hash, parse_json
from ssl_bench.utils.identity import identify
from ssl_bench.utils.versions import outdated

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
        try:
            stored = parse_json(path.read_text())
            values = migrated(stored)
            ok = stored["checksum"] == checksum_of(stored)
            wrong = contradiction(values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{path} is not a row: {what}") from error
        if not ok:
            raise UserError(f"{path} was edited after it was written; measure it again")
        if wrong:
            raise UserError(f"{path}: {wrong}")
        return cls(path, values)

    @property
    def outdated(self) -> list[str]:
        """The components that have a newer version today, in words."""
        return outdated(self["versions"])

    @property
    def stale(self) -> bool:
        """Whether a component that made or evaluated the encoder has a newer version today."""
        return bool(self.outdated)


def expected_id(row: Mapping[str, Any]) -> str:
    """The id that follows from the identity in a row (``identity.number_identity``)."""
    return identify(row["identity"])


def row_path(folder: Path, method: str, evaluation: str, identifier: str) -> Path:
    """``FOLDER/rows/mae-knn-1a2b3c4d5e6f7a8b.json``."""
    safe = [re.sub(r"[^A-Za-z0-9_]+", "-", part).strip("-") for part in (method, Path(evaluation).stem)]
    return folder / "rows" / f"{safe[0]}-{safe[1]}-{identifier}.json"


def read_rows(folder: str | Path) -> list[Row]:
    """All rows below ``FOLDER/rows``, in the order of their file names.

    Raises:
        UserError: No such folder, a file in it is not a row, or a row is there twice, which would count as two seeds.
    """
    rows = Path(folder) / "rows"
    if not rows.is_dir():
        raise UserError(f"no rows in {folder}: expected {rows}/*.json, written by `ssl-bench bench` or `evaluate`")
    found: dict[str, Row] = {}
    for path in sorted(rows.glob("*.json")):
        row = Row.read(path)
        if found.setdefault(row["id"], row) is not row:
            raise UserError(f"{path}: has the id of {found[row['id']].path.name}; keep one of the two")
    return list(found.values())


def migrated(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored row in the present schema; the checksum stays that of the stored form.

    Raises:
        UserError: A newer schema than this version knows, or one that no migration leads on from.
    """
    values = stored
    while (version := values["schema"]) != SCHEMA:
        if not isinstance(version, int) or version > SCHEMA:
            raise UserError(f"written in row schema {version!r}; this ssl-bench reads up to {SCHEMA}: upgrade it")
        if version not in MIGRATIONS:
            raise UserError(f"written in row schema {version}, which this ssl-bench no longer reads")
        values = {**MIGRATIONS[version](values), "schema": version + 1}
    return values


def checksum_of(values: dict[str, Any]) -> str:
    """Hash of everything in a row but its checksum, 16 hex digits."""
    return content_hash({key: value for key, value in values.items() if key != "checksum"})[:16]

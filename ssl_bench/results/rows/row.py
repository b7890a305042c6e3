"""Rows: one immutable JSON file for each number, with everything that defines it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import PACKAGE, content_hash, parse_json, source_files, source_hash

if TYPE_CHECKING:
    from ssl_bench.checkpoints.encoder_file import Checkpoint
    from ssl_bench.data.datasets import Splits
    from ssl_bench.evaluations.evaluator import Evaluator

SCHEMA = 1
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
    def stale(self) -> bool:
        """Whether the method's or the evaluator's source has changed since."""
        code = self["code"]
        return any(
            current is not None and written not in (None, current)
            for written, current in (
                (code["method_source"], _source("methods", self["method"])),
                (code["evaluator_source"], _source("evaluations", self["evaluation"]["evaluator"])),
            )
        )


@cache
def _source(kind: str, name: str) -> str | None:
    """Hash of the files of a method or an evaluator, found without importing them; None for one from outside."""
    file = "baselines" if name in ("raw_pixels", "untrained", "supervised") else name
    path = PACKAGE / kind / f"{file}.py"
    return source_hash(*source_files(path)) if re.fullmatch(r"[a-z0-9_]+", file) and path.is_file() else None


def origin(recipe: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    """What defines a pre-trained encoder: the resolved recipe (seed included) and the images it saw."""
    return {"recipe": recipe, "images": fingerprint}


def loaded(row: Mapping[str, Any]) -> dict[str, Any]:
    """What defines an encoder from elsewhere: its weights, and what they don't show, such as the number of heads.

    Args:
        row: A row, or whatever else has its ``weights`` and ``backbone``.
    """
    backbone = {key: value for key, value in row["backbone"].items() if key != "parameters"}
    return {"weights": row["weights"]["sha256"], "backbone": backbone}


def backbone_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The keywords of an encoder's backbone."""
    recipe = checkpoint.about.get("recipe")
    return recipe["backbone"] if recipe else checkpoint.about.get("backbone", {"name": checkpoint.encoder.name})


def row_id(encoder: dict[str, Any], name: str, evaluator: Evaluator, data: Splits) -> str:
    """Hash of what defines a number: how the encoder was made, and how and on what it is judged. 16 hex digits.

    Args:
        encoder: ``origin``, or ``loaded`` for weights from elsewhere.
        name: Name of the protocol.
        evaluator: With its settings.
        data: What it is judged on.
    """
    protocol = {"name": Path(name).stem, "version": evaluator.version, "settings": evaluator.settings()}
    fingerprints = [data.train.fingerprint, data.test.fingerprint]
    return identify(encoder, protocol, fingerprints)


def identify(encoder: dict[str, Any], protocol: dict[str, Any], fingerprints: list[str]) -> str:
    """The formula of ``row_id``, over plain values: the encoder, name, version and settings, train and test images."""
    return content_hash({"encoder": encoder, "evaluation": protocol, "data": fingerprints})[:16]


def expected_id(row: Mapping[str, Any]) -> str:
    """The id that follows from how the encoder was made and how it was judged, as ``row_id`` computes it."""
    recipe, judged = row["recipe"], row["evaluation"]
    if recipe:
        made = {key: value for key, value in recipe.items() if key != "hash"}
        encoder = origin(made, (row["pretraining"] or {}).get("fingerprint", ""))
    else:
        encoder = loaded(row)
    protocol = {key: judged[key] for key in ("name", "version", "settings")}
    return identify(encoder, protocol, [judged["fingerprints"]["train"], judged["fingerprints"]["test"]])


def contradiction(row: Mapping[str, Any]) -> str:
    """How a row's names or its id belie its content; empty where they don't."""
    recipe = row["recipe"]
    if recipe:
        made = (recipe["method"].rpartition(":")[2], recipe["backbone"]["name"])  # of package.module:Class the class
        said = (row["method"], row["backbone"]["name"])
        if made != said:
            return f"it says {said[0]!r} on {said[1]!r}, its recipe {made[0]!r} on {made[1]!r}"
    identifier = expected_id(row)
    if identifier != row["id"]:
        return f"its id should be {identifier}: it doesn't follow from recipe, evaluation and data"
    return ""


def row_path(folder: Path, method: str, evaluation: str, identifier: str) -> Path:
    """``FOLDER/rows/mae-knn-1a2b3c4d5e6f7a8b.json``."""
    safe = [re.sub(r"[^A-Za-z0-9_]+", "-", part).strip("-") for part in (method, Path(evaluation).stem)]
    return folder / "rows" / f"{safe[0]}-{safe[1]}-{identifier}.json"


def evaluator_name(evaluator: Evaluator) -> str:
    """The registered name of an evaluator's class."""
    from ssl_bench.evaluations import EVALUATIONS

    return next(name for name, cls in EVALUATIONS.items() if cls is type(evaluator))


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

"""Rows: one immutable JSON file for each number, with everything that defines it."""

from __future__ import annotations

import datetime
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.errors import UserError
from ssl_bench.files import PACKAGE, content_hash, source_files, source_hash, write_atomic
from ssl_bench.results.answers import Answers, encode

if TYPE_CHECKING:
    from ssl_bench.checkpoint import Checkpoint
    from ssl_bench.data import Splits
    from ssl_bench.evaluations.evaluator import Data, Evaluator, Result

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
            stored = json.loads(path.read_text())
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


def make_row(
    identifier: str,
    suite: str | None,
    checkpoint: Checkpoint,
    name: str,
    evaluator: Evaluator,
    data: Data,
    result: Result,
    precision: str,
    code: Mapping[str, Any],
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything about one number. Accuracies in percent, times in seconds, memory in bytes; `code` is of `code_of`."""
    import faiss  # here, so that whoever only reads rows doesn't wait for them
    import timm
    import torch

    about = checkpoint.about
    recipe = about.get("recipe")
    row: dict[str, Any] = {
        "schema": SCHEMA,
        "id": identifier,
        "suite": suite,
        "method": checkpoint.method,
        "paper": about.get("paper"),
        "category": about.get("category"),
        "backbone": {**backbone_of(checkpoint), "parameters": sum(p.numel() for p in checkpoint.encoder.parameters())},
        "recipe": {"hash": content_hash(recipe)[:16], **recipe} if recipe else None,
        "views": about.get("views"),
        "pretraining": about.get("pretraining"),
        "evaluation": {
            "name": Path(name).stem,
            "evaluator": evaluator_name(evaluator),
            "version": evaluator.version,
            "settings": evaluator.settings(),
            "pooling": result.pooling,
            "data": data.test.name,
            "fingerprints": {"train": data.train.fingerprint, "test": data.test.fingerprint},
            "images": {"train": len(data.train), "dev": len(data.dev), "test": len(data.test)},
            "skipped": data.train.skipped + data.test.skipped,
            "split": data.test.split,
            "selected_on": f"dev: {len(data.dev)} of the training images, stratified, seed 0"
            if result.selected
            else "nothing was selected",
            "chosen": result.chosen,
            "precision": precision,
            **({"cost": result.cost} if result.cost else {}),
        },
        "metrics": {key: {k: _rounded(v) for k, v in asdict(metric).items()} for key, metric in result.metrics.items()},
        "headline": result.headline,
        "predictions": _npy(checkpoint.method, name, identifier) if result.correct.size else None,
        "reported": None,
        "warnings": list(warnings),
        "flags": about.get("flags", []),
        "deviations": about.get("deviations", []),
        "weights": {"sha256": checkpoint.sha256, "loaded_percent": checkpoint.loaded},
        "code": {**code, "method_source": about.get("method_source")},
        "made": {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "faiss": faiss.__version__,
        },
    }
    row = json.loads(json.dumps(row))
    return {**row, "checksum": checksum_of(row)}


def code_of(evaluator: Evaluator) -> dict[str, Any]:
    """The code that is about to judge. Ask before it does: files may be edited while it runs."""
    from ssl_bench.checkpoint import code_version

    return {**code_version(), "evaluator_source": source_hash(*source_files(inspect.getfile(type(evaluator))))}


def _npy(method: str, evaluation: str, identifier: str) -> str:
    return row_path(Path(), method, evaluation, identifier).with_suffix(".npy").name


def evaluator_name(evaluator: Evaluator) -> str:
    """The registered name of an evaluator's class."""
    from ssl_bench.evaluations import EVALUATIONS

    return next(name for name, cls in EVALUATIONS.items() if cls is type(evaluator))


def write_row(path: Path, row: dict[str, Any], correct: Answers) -> None:
    """Write a row after its predictions, so that a row is never without them."""
    if correct.size:
        write_atomic(path.with_suffix(".npy"), encode(correct))
    write_atomic(path, json.dumps(row, indent=1) + "\n")


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


def _rounded(value: float) -> float:
    return round(value, 6) if isinstance(value, float) else value

"""Make a row from a result, and write it."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.results.rows.contradiction import contradiction
from ssl_bench.results.rows.predictions import Predictions, encode
from ssl_bench.results.rows.row import SCHEMA, checksum_of, row_path
from ssl_bench.results.rows.schema import LARGEST, violations
from ssl_bench.utils.errors import RunError
from ssl_bench.utils.files import write_atomic
from ssl_bench.utils.identity import identify, merged_versions, source_hash
from ssl_bench.utils.references import without_place

if TYPE_CHECKING:
    from ssl_bench.checkpoints.encoder_file import Checkpoint
    from ssl_bench.evaluations.evaluator import Data, Evaluator, Result
    from ssl_bench.evaluations.pictures import Picture


def make_row(
    identity: Mapping[str, Any],
    suite: str | None,
    checkpoint: Checkpoint,
    name: str,
    evaluator: Evaluator,
    data: Data,
    result: Result,
    precision: str,
    device: str,
    code: Mapping[str, Any],
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything about one number. Accuracies in percent, times in seconds, memory in bytes; `code` is of `code_of`."""
    import faiss  # here, so that whoever only reads rows doesn't wait for them
    import timm
    import torch

    about = checkpoint.about
    recipe, identifier = _recipe(about, identity["encoder"]), identify(identity)
    row: dict[str, Any] = {
        "schema": SCHEMA,
        "id": identifier,
        "suite": suite,
        "task": evaluator.task,
        "identity": identity,
        "versions": merged_versions(identity),
        "method": checkpoint.method,
        "paper": about.get("paper"),
        "category": about.get("category"),
        "backbone": {
            **checkpoint.backbone,
            "parameters": sum(p.numel() for p in checkpoint.encoder.parameters()),
            "input": checkpoint.input,
        },
        "recipe": recipe,
        "views": about.get("views"),
        "pretraining": _without_places(about.get("pretraining")),
        "evaluation": {
            "name": Path(name).stem,
            "evaluator": identity["evaluation"]["evaluator"],
            "version": evaluator.version,
            "settings": evaluator.settings(),
            "pooling": result.pooling,
            "data": data.test.name,
            **({"given": data.test.given} if data.test.given else {}),
            "fingerprints": {"train": data.train.fingerprint, "test": data.test.fingerprint},
            "images": {"train": len(data.train), "dev": len(data.dev), "test": len(data.test)},
            "skipped": data.train.skipped + data.test.skipped,
            "split": data.test.split,
            "selected_on": f"dev: {len(data.dev)} of the training images, stratified, seed 0"
            if result.selected
            else "nothing was selected",
            "chosen": result.chosen,
            "deviations": list(evaluator.deviations),
            "precision": precision,
            **({"cost": result.cost} if result.cost else {}),
        },
        "metrics": {key: {k: _rounded(v) for k, v in asdict(metric).items()} for key, metric in result.metrics.items()},
        "headline": result.headline,
        "predictions": _beside(checkpoint.method, name, identifier, ".npy") if result.correct.size else None,
        **({"picture": _picture(checkpoint.method, name, identifier, result.picture)} if result.picture else {}),
        "reported": None,
        "warnings": list(warnings),
        "flags": about.get("flags", []),
        "deviations": about.get("deviations", []),
        "weights": {"sha256": checkpoint.sha256, "loaded_percent": checkpoint.loaded},
        "code": {
            **code,
            "encoder_commit": about.get("code", {}).get("commit"),
            "method_source": about.get("method_source"),
        },
        "made": {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "faiss": faiss.__version__,
            "device": device,
        },
    }
    row = json.loads(json.dumps(row))
    return {**row, "checksum": checksum_of(row)}


def _recipe(about: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any] | None:
    """The recipe of an encoder file without places of files; those of teachers are no part of its identity."""
    recipe = about.get("recipe")
    if not recipe:
        return None
    kept = made.get("settings", {})
    settings = {key: value if key in kept else _without_places(value) for key, value in recipe["settings"].items()}
    teachers = {
        keyword: _recipe({"recipe": teacher}, made.get("teachers", {}).get(keyword, {}))
        for keyword, teacher in recipe.get("teachers", {}).items()
    }
    return recipe | {"settings": settings} | ({"teachers": teachers} if "teachers" in recipe else {})


def _without_places(value: Any) -> Any:
    """Plain values in which no text is a place on the machine of whoever made the row."""
    if isinstance(value, dict):
        return {key: _without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    return without_place(value) if isinstance(value, str) else value


def code_of(evaluator: Evaluator) -> dict[str, Any]:
    """The code that is about to evaluate. Ask before it does: files may be edited while it runs."""
    from ssl_bench.checkpoints.encoder_file import code_version

    return {**code_version(), "evaluator_source": source_hash(type(evaluator))}


def _beside(method: str, evaluation: str, identifier: str, suffix: str) -> str:
    """The name of a file that belongs to a row."""
    return row_path(Path(), method, evaluation, identifier).with_suffix(suffix).name


def _picture(method: str, evaluation: str, identifier: str, picture: Picture) -> dict[str, Any]:
    name = _beside(method, evaluation, identifier, ".png")
    return {"file": name, "sha256": hashlib.sha256(picture.png).hexdigest(), "columns": list(picture.columns)}


def write_row(path: Path, row: dict[str, Any], correct: Predictions, picture: Picture | None = None) -> None:
    """Write a row after its predictions and its picture, so that a row is never without them.

    Raises:
        RunError: It is none that could be read again: an encoder file or an evaluator said something that no row holds.
    """
    text = json.dumps(row, indent=1) + "\n"
    if wrong := [*violations(row), *filter(None, [contradiction(row)])]:
        raise RunError(f"{path.name} is not written, it would be no row: {wrong[0]}")
    if len(text) > LARGEST:
        raise RunError(f"{path.name} is not written: it has {len(text):,} bytes, and a row at most {LARGEST:,}")
    if correct.size:
        write_atomic(path.with_suffix(".npy"), encode(correct))
    if picture is not None:
        write_atomic(path.with_suffix(".png"), picture.png)
    write_atomic(path, text)


def _rounded(value: float) -> float:
    return round(value, 6) if isinstance(value, float) else value

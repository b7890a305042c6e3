"""Whole rows, as `ssl-bench check` wants them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_bench.evaluations.pictures import Gallery
from ssl_bench.results.rows.predictions import encode
from ssl_bench.results.rows.row import SCHEMA, Row, checksum_of
from ssl_bench.utils.identity import identify, merged_versions
from ssl_bench.utils.versions import current_version

AddRow = Callable[..., Row]
INPUT = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def identity_of(row: dict[str, Any]) -> dict[str, Any]:
    """An identity that fits what a row says, every setting in it; of version 1 but for the evaluator."""
    recipe, evaluated = row["recipe"], row["evaluation"]
    if recipe:
        encoder = {
            "method": recipe["method"].rpartition(":")[2],
            **{part: recipe[part] for part in ("settings", "backbone", "training")},
            "seed": recipe["seed"],
            "images": (row["pretraining"] or {}).get("fingerprint"),
            "teachers": {},
            "versions": {f"method {row['method']}": 1, "backbone vit": 1, "views": 1, "training": 1},
        }
    else:
        backbone = {key: value for key, value in row["backbone"].items() if key not in ("parameters", "input")}
        encoder = {
            "weights": row["weights"]["sha256"],
            "backbone": backbone,
            "input": row["backbone"].get("input", INPUT),
            "versions": {"backbone vit": 1},
        }
    evaluation = {
        **{key: evaluated[key] for key in ("name", "evaluator", "settings")},
        **({"source": source} if (source := row["code"]["evaluator_source"]) else {}),  # of an evaluator from outside
        "images": evaluated["fingerprints"],
        "versions": {f"evaluator {evaluated['evaluator']}": evaluated["version"], "features": 1},
    }
    return {"encoder": encoder, "evaluation": evaluation}


ABOUT = ("time", "python", "torch", "timm", "faiss", "device")
SOURCES = ("package", "commit", "encoder_commit", "method_source", "evaluator_source")
BARE: dict[str, Any] = {  # what no table reads
    "suite": "test",
    "paper": None,
    "category": "contrastive",
    "views": "2x32",
    "backbone": {"parameters": 10, "input": INPUT},
    "pretraining": {"data": "shapes"},
    "evaluation": {
        "split": "test",
        "selected_on": "dev",
        "chosen": {},
        "deviations": [],
        "precision": "32-true",
    },
    "predictions": None,
    "reported": None,
    "flags": [],
    "deviations": [],
    "weights": {"sha256": "c" * 64, "loaded_percent": 100.0},
    "code": dict.fromkeys(SOURCES),
    "made": dict.fromkeys(ABOUT, "1"),
}


def whole(row: dict[str, Any], missing: dict[str, Any]) -> dict[str, Any]:
    """A row with what it lacks."""
    parts = {
        k: whole(v, missing[k]) if isinstance(v, dict) and isinstance(missing.get(k), dict) else v
        for k, v in row.items()
    }
    return {**missing, **parts}


def sealed(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the identity, the versions, the id and the checksum that its content has, and all fields."""
    row = json.loads(json.dumps(whole(row, BARE)))
    identity = identity_of(row)
    row = {"task": "classification", **row, "schema": SCHEMA}
    row |= {"identity": identity, "versions": merged_versions(identity)}
    row["id"] = identify(identity)
    return {**row, "checksum": checksum_of(row)}


def merged(value: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Nested keys replaced."""
    out = dict(value)
    for key, item in change.items():
        out[key] = merged(out[key], item) if isinstance(item, dict) and isinstance(out.get(key), dict) else item
    return out


@pytest.fixture
def add_row(tmp_path: Path) -> AddRow:
    """Writes a row of a method, a seed and an evaluation, with its correct, into ``tmp_path``."""

    def add(method: str, seed: int, correct: Any, name: str = "linear", **changes: Any) -> Row:
        correct = np.asarray(correct)
        correct = correct if correct.dtype == float else correct.astype(bool)  # shares, or right and wrong
        backbone = {"name": "vit_micro_patch8_32", "drop_path": 0.0}
        recipe = {"method": method, "backbone": backbone, "seed": seed, "training": {"epochs": 2.0}, "settings": {}}
        value = 100 * float(correct.mean())
        row: dict[str, Any] = {
            "method": method,
            "backbone": backbone,
            "recipe": recipe,
            "pretraining": {
                "data": "shapes",
                "fingerprint": "f" * 64,
                "epochs": 2.0,
                "images_seen": 1000,
                "patches_per_image": 32.0,
                "patches_encoded_without_gradient": 0,
                "flops": 1e9,
                "wall_seconds": 5.0,
                "peak_memory_bytes": 10**8,
                "device": "cpu",
            },
            "evaluation": {
                "name": name,
                "evaluator": name,
                "version": current_version(f"evaluator {name}") or 1,
                "settings": {},
                "pooling": "mean",
                "data": "shapes",
                "fingerprints": {"train": "a", "test": "b"},
                "images": {"train": 10, "dev": 1, "test": correct.size},
                **BARE["evaluation"],
            },
            "metrics": {"top1": {"value": value, "n": correct.size, "low": value - 3, "high": value + 3}},
            "headline": "top1",
            "predictions": "",
        }
        row = json.loads(json.dumps(merged(whole(row, BARE), changes)))
        if row["recipe"]:
            row["recipe"]["backbone"]["name"] = row["backbone"]["name"]
        row = sealed(row)
        path = tmp_path / "rows" / f"row-{row['id']}.json"
        if row["predictions"] == "":
            row["predictions"] = path.with_suffix(".npy").name
        row["checksum"] = checksum_of(row)
        path.parent.mkdir(exist_ok=True)
        if row["predictions"] is not None:
            path.with_suffix(".npy").write_bytes(encode(correct))
        path.write_text(json.dumps(row))
        return Row.read(path)

    return add


def add_picture(row: Row) -> Path:
    """Puts a picture of two columns beside a row, which then says so."""
    gallery = Gallery(1, "image", "truth")
    gallery.add(0, *torch.zeros(2, 3, 20, 30, dtype=torch.uint8))
    picture = gallery.picture()
    assert picture is not None
    path = row.path.with_suffix(".png")
    path.write_bytes(picture.png)
    said = {"file": path.name, "sha256": hashlib.sha256(picture.png).hexdigest(), "columns": list(picture.columns)}
    values = row.values | {"picture": said}
    row.path.write_text(json.dumps(values | {"checksum": checksum_of(values)}))
    return path

"""Whole rows, as `ssl-bench check` wants them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_bench.results.rows.predictions import encode
from ssl_bench.results.rows.row import Row, expected_id
from ssl_bench.utils.files import content_hash

AddRow = Callable[..., Row]


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
            "schema": 1,
            "suite": "test",
            "method": method,
            "paper": None,
            "category": "contrastive",
            "backbone": {**backbone, "parameters": 10},
            "recipe": {"hash": content_hash(recipe)[:16], **recipe},
            "views": "2x32",
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
                "version": 1,
                "settings": {},
                "pooling": "mean",
                "data": "shapes",
                "fingerprints": {"train": "a", "test": "b"},
                "images": {"train": 10, "dev": 1, "test": correct.size},
                "split": "test",
                "selected_on": "dev",
                "chosen": {},
                "precision": "32-true",
            },
            "metrics": {"top1": {"value": value, "n": correct.size, "low": value - 3, "high": value + 3}},
            "headline": "top1",
            "predictions": "",
            "reported": None,
            "flags": [],
            "deviations": [],
            "weights": {"sha256": "c" * 64, "loaded_percent": 100.0},
            "code": {"package": "0", "commit": None, "method_source": None, "evaluator_source": None},
            "made": {"time": "now", "torch": "2", "timm": "1", "faiss": "1"},
        }
        row = json.loads(json.dumps(merged(row, changes)))
        if row["recipe"]:
            row["recipe"]["backbone"]["name"] = row["backbone"]["name"]
        row["id"] = expected_id(row)
        path = tmp_path / "rows" / f"row-{row['id']}.json"
        if row["predictions"] == "":
            row["predictions"] = path.with_suffix(".npy").name
        row["checksum"] = content_hash(row)[:16]
        path.parent.mkdir(exist_ok=True)
        if row["predictions"] is not None:
            path.with_suffix(".npy").write_bytes(encode(correct))
        path.write_text(json.dumps(row))
        return Row.read(path)

    return add

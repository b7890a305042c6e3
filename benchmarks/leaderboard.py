"""Thousands of rows: seconds and memory of a leaderboard, and what one more row costs.

    python benchmarks/leaderboard.py                 # 10,000 rows in a temporary folder, under a minute on one core
    python benchmarks/leaderboard.py --rows 1000 --formats md,csv,html,latex

A row has the size of a real k-NN or linear row and the predictions of 4,000 test images. Every measurement runs in a
fresh process: seconds are those after the imports (processor seconds too, for a busy machine), memory is the peak of
all of it. Goals: a leaderboard within 5 s and 500 MB, and within 1.5 times one read of the folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ssl_bench.results.rows.row import SCHEMA, expected_id
from ssl_bench.utils.files import content_hash
from ssl_bench.utils.identity import merged_versions

IMAGES = 4000
EVALUATIONS = 20
SEEDS = 5
MEASURE = """
import json, resource, sys, time
start = time.perf_counter()
from ssl_bench.commands.leaderboard import leaderboard
from ssl_bench.results.rows.row import read_rows
imported = time.perf_counter() - start
start, used = time.perf_counter(), time.process_time()
if sys.argv[2] == "read":
    read_rows(sys.argv[1])
else:
    leaderboard(sys.argv[1], formats=sys.argv[2].split(","), show=lambda line: None)
seconds, used = time.perf_counter() - start, time.process_time() - used
print(json.dumps([imported, seconds, used, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def metric(value: float) -> dict[str, Any]:
    """A number with an interval as of 4,000 images."""
    return {"value": value, "n": IMAGES, "low": value - 1.5, "high": value + 1.5}


def write(folder: Path, method: int, seed: int, evaluation: int, predictions: np.ndarray[Any, Any]) -> None:
    """One row with its predictions; every second one has as many metrics as a k-NN row."""
    value = 100 * float(predictions.mean())
    name, kind = f"evaluation-{evaluation:02}", "knn" if evaluation % 2 else "linear"
    backbone = {"name": "vit_micro_patch8_32", "pos_embed": "sincos_xy", "init": "timm", "drop_path": 0.0}
    training = {"epochs": 10.0, "batch_size": 256, "base_lr": 1e-3, "warmup_epochs": 1.0, "weight_decay": 0.05}
    recipe: dict[str, Any] = {"method": f"method-{method:03}", "backbone": backbone, "seed": seed, "training": training}
    recipe["settings"] = {"temperature": 0.2, "size": method}
    names = [f"{pool}top1@k={k},T={t}" for pool in ("", "cls/", "mean/") for k in range(7) for t in (0.07, 0.1)]
    row: dict[str, Any] = {
        "schema": SCHEMA,
        "suite": "synthetic",
        "method": recipe["method"],
        "paper": None,
        "category": "contrastive",
        "backbone": {**backbone, "parameters": 467_808},
        "recipe": recipe,
        "task": "classification",
        "views": "2x32",
        "pretraining": {
            "data": "shapes",
            "fingerprint": "f" * 64,
            "epochs": 10.0,
            "images_seen": 100_000,
            "patches_per_image": 32.0,
            "patches_encoded_without_gradient": 0,
            "flops": 1e12 * (1 + method),
            "wall_seconds": 60.0,
            "peak_memory_bytes": 10**9,
            "device": "none",
        },
        "evaluation": {
            "name": name,
            "evaluator": kind,
            "version": 9,  # never stale
            "settings": {"poolings": ["cls", "mean"], "k": [1, 5, 10, 20, 50, 100, 200]},
            "pooling": "mean",
            "data": "shapes",
            "fingerprints": {"train": "a" * 64, "test": "b" * 64},
            "images": {"train": 10_000, "dev": 1000, "test": IMAGES},
            "skipped": 0,
            "split": "test",
            "selected_on": "dev",
            "chosen": {"pooling": "mean"},
            "precision": "bf16-mixed",
        },
        "metrics": {"top1": metric(value), **{key: metric(value) for key in names if kind == "knn"}},
        "headline": "top1",
        "reported": None,
        "flags": [],
        "deviations": ["drawn, not measured"],
        "weights": {"sha256": "c" * 64, "loaded_percent": 100.0},
        "code": dict.fromkeys(("package", "commit", "encoder_commit", "method_source", "evaluator_source")),
        "made": dict.fromkeys(("time", "python", "torch", "timm", "faiss", "device"), "none"),
    }
    evaluated = row["evaluation"]
    versions = {f"method {recipe['method']}": 1, "backbone vit": 1, "views": 1, "training": 1}
    row["identity"] = {
        "encoder": {**recipe, "images": "f" * 64, "teachers": {}, "versions": versions},
        "evaluation": {
            **{key: evaluated[key] for key in ("name", "evaluator", "settings")},
            "images": evaluated["fingerprints"],
            "versions": {f"evaluator {kind}": evaluated["version"], "features": 1},
        },
    }
    row["versions"] = merged_versions(row["identity"])
    row["id"] = expected_id(row)
    path = folder / "rows" / f"{recipe['method']}-{name}-{row['id']}.json"
    row["predictions"] = path.with_suffix(".npy").name
    row["checksum"] = content_hash(row)[:16]
    np.save(path.with_suffix(".npy"), np.packbits(predictions))
    path.write_text(json.dumps(row, indent=1) + "\n")


def fill(folder: Path, rows: int) -> None:
    """Methods whose accuracies lie a fraction of a point apart, so that many share a rank."""
    (folder / "rows").mkdir()
    draws = np.random.default_rng(0)
    difficulty = draws.random((EVALUATIONS, IMAGES))
    for at in range(rows):
        method, rest = divmod(at, SEEDS * EVALUATIONS)
        seed, evaluation = divmod(rest, EVALUATIONS)
        noise = draws.normal(0, 0.15, IMAGES)
        write(folder, method, seed, evaluation, difficulty[evaluation] + noise < 0.3 + 0.003 * method)


def measure(folder: Path, what: str) -> tuple[float, ...]:
    """Seconds of the imports, seconds and processor seconds of the work, and peak bytes of a fresh process."""
    command = [sys.executable, "-c", MEASURE, str(folder), what]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return tuple(json.loads(done.stdout))


def main() -> None:
    """Measure and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--formats", default="md")
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder, a.rows)
        read: list[tuple[float, ...]] = []
        made: list[tuple[float, ...]] = []
        for at in range(a.repeats):  # in turn, so that other load hits both; each leaderboard has one row more
            read.append(measure(folder, "read"))
            predictions = np.random.default_rng(at).random(IMAGES) < 0.4
            write(folder, a.rows, at, 0, predictions)
            made.append(measure(folder, a.formats))
    print(f"{a.rows} rows, {a.formats}; best of {a.repeats}")
    print(f"{'':26}{'import s':>8}{'s':>8}{'CPU s':>8}{'peak MB':>9}")
    for label, times in (("read the folder", read), ("leaderboard, one row more", made)):
        imported, seconds, used, peak = (min(column) for column in zip(*times, strict=True))
        print(f"{label:26}{imported:8.2f}{seconds:8.2f}{used:8.2f}{peak / 1e6:9.0f}")
    ratio = min(t[2] for t in made) / min(t[2] for t in read)
    print(f"leaderboard after one more row / one read of the folder, CPU: {ratio:.2f}")


if __name__ == "__main__":
    main()

"""Evaluations by two processes give the numbers of one, with batches that can't be shared evenly."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.harness import EVALUATORS, with_targets
from tiny import NANO, blobs
from two_processes import in_two

from ssl_bench.backbones.vit import ViT
from ssl_bench.checkpoints.encoder_file import Checkpoint
from ssl_bench.commands.evaluate import run_evaluations
from ssl_bench.data.datasets import Splits
from ssl_bench.evaluations import EVALUATIONS
from ssl_bench.evaluations.evaluator import Evaluator
from ssl_bench.evaluations.trained import upernet
from ssl_bench.evaluations.trained.finetune import FineTune
from ssl_bench.evaluations.trained.probe import Probe
from ssl_bench.results.rows.predictions import read_predictions

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
DENSE = ("segmentation-linear", "segmentation-finetune", "depth-linear")  # a pixel may be on the other side of a border
TUNE: dict[str, Any] = {"epochs": 2, "warmup_epochs": 0, "base_lr": (0.02, 0.1), "drop_path": 0.0, "head_init": 0.02}


def evaluators() -> dict[str, Evaluator]:
    """Every one. 45 training images: fits have 41, batches of 15 and 16, and last ones of 13 and 11."""
    every: dict[str, Any] = EVALUATIONS
    settings = {
        name: {key: tuple(value) if isinstance(value, list) else value for key, value in of_name.items()}
        for name, of_name in EVALUATORS.items()
    }
    return {name: every[name](**of_name) for name, of_name in settings.items()} | {
        "detection-trained": every["detection"](**settings["detection"], frozen=False),
        "probe": Probe(base_lr=(0.01, 0.1), poolings=("mean", "cls"), epochs=2, batch_size=16, batch_norm=True),
        "probe-plain": Probe(base_lr=(0.1,), poolings=("mean",), epochs=2, batch_size=15),
        "finetune": FineTune(**TUNE, batch_size=16, repeated_augmentation=2, randaugment="", color_jitter=0.4),
        "finetune-odd": FineTune(**TUNE, batch_size=15, mixup=0, cutmix=0, randaugment=""),
    }


def evaluate(folder: Path) -> list[Any]:
    torch.manual_seed(0)
    os.chdir(folder)
    encoder = Checkpoint(ViT(NANO), "nano", {}, "c" * 64)
    return run_evaluations(encoder, evaluators(), images(), Path(), None)


def images() -> Splits:
    return Splits(with_targets(blobs(45, "train", 0)), with_targets(blobs(25, "test", 1)))


def _evaluate(rank: int, folder: Path) -> None:
    assert len(evaluate(folder)) == (0 if rank else len(evaluators()))


def test_two_processes_evaluate_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(upernet, "DROPOUT", 0.0)  # which each process draws for itself
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    in_two(_evaluate, tmp_path / "two", seconds=900)
    one = {row["evaluation"]["name"]: row for row in evaluate(tmp_path / "one")}
    os.chdir(tmp_path / "two")
    two = {row["evaluation"]["name"]: row for row in run_evaluations(
        Checkpoint(_same(), "nano", {}, "c" * 64), evaluators(), images(), Path(), None
    )}  # fmt: skip
    assert not list(Path("runs/evaluations").iterdir())
    for name, row in one.items():
        if name.startswith("detection"):  # each process learns from anchors of its own draw: see below
            assert two[name]["metrics"].keys() == row["metrics"].keys()
            continue
        if name in DENSE:
            for metric, measured in row["metrics"].items():
                assert two[name]["metrics"][metric]["value"] == pytest.approx(measured["value"], abs=0.05), (
                    name,
                    metric,
                )
        else:
            assert two[name]["metrics"] == row["metrics"], name
            assert np.array_equal(read_predictions(two[name]), read_predictions(row)), name
        chosen, expected = two[name]["evaluation"]["chosen"], row["evaluation"]["chosen"]
        assert chosen.keys() == expected.keys()
        for key, value in expected.items():
            assert chosen[key] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), (name, key)
        if "cost" in row["evaluation"]:
            loss, other = (each["evaluation"]["cost"]["final_loss"] for each in (row, two[name]))
            assert other == pytest.approx(loss, rel=1e-3), name


def _same() -> ViT:
    torch.manual_seed(0)
    return ViT(NANO)

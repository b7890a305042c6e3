"""Evaluations by two processes give the numbers of one, with batches that can't be shared evenly."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import NANO, blobs

from ssl_bench.backbones.vit import ViT
from ssl_bench.checkpoints.encoder_file import Checkpoint
from ssl_bench.commands.evaluate import run_evaluations
from ssl_bench.data.datasets import ImageSet, Splits
from ssl_bench.data.targets import Targets
from ssl_bench.evaluations.evaluator import Evaluator
from ssl_bench.evaluations.frozen.knn import KNN
from ssl_bench.evaluations.frozen.logistic import Logistic
from ssl_bench.evaluations.trained.detection import Detection
from ssl_bench.evaluations.trained.finetune import FineTune
from ssl_bench.evaluations.trained.probe import Probe
from ssl_bench.results.rows.predictions import read_predictions

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
TUNE: dict[str, Any] = {"epochs": 2, "warmup_epochs": 0, "base_lr": (0.02, 0.1), "drop_path": 0.0, "head_init": 0.02}
DETECT: dict[str, Any] = {
    **{"steps": 2, "warmup": 0, "batch_size": 4, "short_side": 16, "long_side": 16},
    **{"channels": 8, "hidden": 16, "mask_layers": 1, "proposals": 20, "sampled": 8},
}


def evaluators() -> dict[str, Evaluator]:
    """45 training images: fits have 41, batches of 15 and 16, and last ones of 13 and 11."""
    return {
        "knn": KNN(k=(1, 5), headline_k=5),
        "logistic": Logistic(C=(0.01, 1.0)),
        "probe": Probe(base_lr=(0.01, 0.1), poolings=("mean", "cls"), epochs=2, batch_size=16, batch_norm=True),
        "probe-plain": Probe(base_lr=(0.1,), poolings=("mean",), epochs=2, batch_size=15),
        "finetune": FineTune(**TUNE, batch_size=16, repeated_augmentation=2, randaugment="", color_jitter=0.4),
        "detection": Detection(**DETECT, frozen=False),
        "finetune-odd": FineTune(**TUNE, batch_size=15, mixup=0, cutmix=0, randaugment=""),
    }


def splits() -> Splits:
    return Splits(*(seen(blobs(n, split, seed)) for n, split, seed in ((45, "train", 0), (25, "test", 1))))


def seen(images: ImageSet) -> ImageSet:
    """With the square of each as an object."""
    assert images.decoded is not None
    there = (images.decoded.amax(1) > 200).to(torch.uint8)
    masks = there * (1 + images.labels.view(-1, 1, 1)).to(torch.uint8)
    return replace(images, targets=Targets(("none", *images.classes), masks, there))


def evaluate(folder: Path) -> list[Any]:
    torch.manual_seed(0)
    os.chdir(folder)
    encoder = Checkpoint(ViT(NANO), "nano", {}, "c" * 64)
    return run_evaluations(encoder, evaluators(), splits(), Path(), None)


def _process(rank: int, port: int, folder: Path) -> None:
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {**world, "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        assert len(evaluate(folder)) == (0 if rank else len(evaluators()))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def test_two_processes_evaluate_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_process, args=(rank, port, tmp_path / "two")) for rank in range(2)]
    for each in processes:
        each.start()
    for each in processes:
        each.join(300)
        each.kill()
    assert [each.exitcode for each in processes] == [0, 0]
    one = {row["evaluation"]["name"]: row for row in evaluate(tmp_path / "one")}
    os.chdir(tmp_path / "two")
    two = {row["evaluation"]["name"]: row for row in run_evaluations(
        Checkpoint(_same(), "nano", {}, "c" * 64), evaluators(),
        splits(), Path(), None,
    )}  # fmt: skip
    assert not list(Path("runs/evaluations").iterdir())
    for name, row in one.items():
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

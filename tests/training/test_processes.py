"""A run in two processes is the run in one: its learning curve and the loss in the row are those of the joint batch."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import tiny_recipe

from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.commands.pretrain import run
from ssl_bench.config.recipe import Recipe, load_recipe
from ssl_bench.data.datasets import Splits
from ssl_bench.training import resume

METHODS = ("mpp", "dino", "ibot")


def recipe(method: str) -> Recipe:
    still = {"drop_path": 0.0, "precision": "32", "epochs": 1, "base_lr": 1e-2}  # every process draws its own drop path
    return load_recipe(method, str(tiny_recipe(method)), {"backbone": "vit_nano_patch4_16", **still})


@pytest.fixture(scope="module")
def in_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of all methods, trained by two gloo processes."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    workers = [context.Process(target=_train, args=(rank, port, folder)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
        worker.kill()
    return folder


def _train(rank: int, port: int, folder: Path) -> None:
    from tiny import blobs

    torch.set_num_threads(1)
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    torchrun = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {**world, **torchrun, "CUDA_VISIBLE_DEVICES": ""}
    resume.AGREE = 2  # and a checkpoint each time, which must change nothing
    for method in METHODS:
        resume.Resume.__init__.__defaults__ = (0.0,)  # type: ignore[attr-defined]
        run(recipe(method), Splits(blobs(48, "train", 0), blobs(24, "test", 1)), folder / method, ("csv",))


@pytest.mark.parametrize("method", METHODS)
def test_curve_and_final_loss_are_those_of_one_process(
    method: str, in_two: Path, tiny_data: Splits, tmp_path: Path
) -> None:
    path = run(recipe(method), tiny_data, tmp_path / "one", ("csv",))
    one, two = (pd.read_csv(folder / "metrics.csv") for folder in (tmp_path / "one", in_two / method))
    assert len(one) >= 4 and list(one) == list(two)
    pd.testing.assert_frame_equal(two, one, rtol=2e-4, atol=1e-6)
    losses = [load_encoder(file).about["pretraining"]["final_loss"] for file in (path, in_two / method / "encoder.pt")]
    assert losses[0] == one["loss"].iloc[-1]
    assert losses[1] == two["loss"].iloc[-1] == pytest.approx(losses[0], rel=2e-4)

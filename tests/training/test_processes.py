"""A run in two processes is the run in one, with weights whole in both (DDP) or sharded (FSDP), interrupted or not."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import blobs, tiny_recipe
from two_processes import in_two

from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.commands.evaluate import run_evaluations
from ssl_bench.commands.pretrain import run
from ssl_bench.config.recipe import Recipe, load_recipe
from ssl_bench.data.datasets import Splits
from ssl_bench.evaluations.frozen.knn import KNN
from ssl_bench.nn.sharding import blocks_of, local
from ssl_bench.training import resume
from ssl_bench.training.sharded import Sharded
from ssl_bench.training.trainer import _launched, train
from ssl_bench.utils.errors import UserError
from ssl_bench.views.evaluation import eval_images

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
RUNS = [
    *(("ddp", method) for method in ("mpp", "dino", "ibot")),
    *(("fsdp", method) for method in ("mae", "dino", "moco_v3", "ibot")),
]
INTERRUPTED = ("mae", "moco_v3")


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def recipe(method: str) -> Recipe:
    still = {"drop_path": 0.0, "precision": "32", "epochs": 1, "base_lr": 1e-2}  # every process draws its own drop path
    values = {"backbone": "vit_nano_patch4_16", "clip_grad": 0.5, **still}
    return load_recipe(method, str(tiny_recipe(method)), values)


def data() -> Splits:
    return Splits(blobs(48, "train", 0), blobs(24, "test", 1))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of all methods, trained by two gloo processes."""
    folder = tmp_path_factory.mktemp("two")
    in_two(_train_all, folder, seconds=1800)
    return folder


def _train_all(rank: int, folder: Path) -> None:
    resume.AGREE = 2  # and a checkpoint each time, which must change nothing
    resume.Resume.__init__.__defaults__ = (0.0,)  # type: ignore[attr-defined]
    for strategy, method in RUNS:
        run(recipe(method), data(), folder / f"{method}-{strategy}", ("csv",), strategy)
    for method in INTERRUPTED:
        _interrupt(method, folder / f"{method}-stopped")
        if rank == 0:
            shutil.copytree(folder / f"{method}-stopped", folder / f"{method}-elsewhere")
        torch.distributed.barrier()
        run(recipe(method), data(), folder / f"{method}-stopped", ("csv",), "fsdp")


def _interrupt(method: str, folder: Path) -> None:
    """A sharded run that dies at step 3, after a checkpoint at step 2."""
    usual = resume.Resume.on_train_batch_end

    def save_then_die(self: resume.Resume, trainer: object, network: torch.nn.Module, *rest: object) -> None:
        usual(self, trainer, network, *rest)  # type: ignore[arg-type]
        if trainer.global_step == 3:  # type: ignore[attr-defined]
            moments = trainer.optimizers[0].state  # type: ignore[attr-defined]
            for p in (p for block in blocks_of(network) for p in block.parameters()):
                here = (
                    [p, p.grad, *(moments[p][key] for key in ("exp_avg", "exp_avg_sq"))] if p.grad is not None else [p]
                )
                assert all(2 * local(tensor).numel() <= p.numel() + 1 for tensor in here)
            raise Killed

    resume.Resume.on_train_batch_end = save_then_die  # type: ignore[assignment]
    try:
        run(recipe(method), data(), folder, ("csv",), "fsdp")
    except Killed:
        resume.Resume.on_train_batch_end = usual  # type: ignore[method-assign]


@pytest.mark.parametrize(("strategy", "method"), RUNS)
def test_two_processes_train_as_one(strategy: str, method: str, trained: Path, tmp_path: Path) -> None:
    """Learning curves, the loss in the row, and the encoder, which one process then evaluates."""
    path, other = run(recipe(method), data(), tmp_path / "one", ("csv",)), trained / f"{method}-{strategy}"
    one, two = (pd.read_csv(folder / "metrics.csv") for folder in (tmp_path / "one", other))
    assert len(one) >= 4 and list(one) == list(two)
    pd.testing.assert_frame_equal(two, one, rtol=2e-4, atol=1e-6)
    encoders = [load_encoder(file) for file in (path, other / "encoder.pt")]
    losses = [encoder.about["pretraining"]["final_loss"] for encoder in encoders]
    assert losses[0] == pytest.approx(one["loss"].iloc[-1], rel=1e-12)
    assert losses[1] == pytest.approx(two["loss"].iloc[-1], rel=1e-12)
    assert losses[1] == pytest.approx(losses[0], rel=2e-4)
    torch.testing.assert_close(weights(other / "encoder.pt"), weights(path), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        pixels = eval_images(data().test.images, (16, 16))  # type: ignore[arg-type]
        features = [encoder.encoder.eval().features(pixels, ["mean"])["mean"] for encoder in encoders]
    torch.testing.assert_close(features[1], features[0], rtol=1e-3, atol=1e-3)
    os.chdir(tmp_path)
    rows = [run_evaluations(encoder, {"knn": KNN()}, data(), tmp_path / "rows", None)[0] for encoder in encoders]
    assert rows[0]["metrics"]["top1"]["value"] == pytest.approx(rows[1]["metrics"]["top1"]["value"], abs=100 / 24)


@pytest.mark.parametrize("method", INTERRUPTED)
def test_a_sharded_run_goes_on_exactly_and_in_one_process(method: str, trained: Path) -> None:
    """The same processes: to the bit. One process: what it would have computed, up to rounding."""
    through = weights(trained / f"{method}-fsdp" / "encoder.pt")
    again = weights(trained / f"{method}-stopped" / "encoder.pt")
    assert all(torch.equal(again[key], value) for key, value in through.items())
    state = torch.load(trained / f"{method}-elsewhere" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2
    elsewhere = run(recipe(method), data(), trained / f"{method}-elsewhere", ("csv",))
    torch.testing.assert_close(weights(elsewhere), through, rtol=1e-4, atol=1e-4)


def test_strategies_that_there_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert isinstance(_launched("fsdp")["strategy"], Sharded) and _launched("ddp")["num_nodes"] == 2
    monkeypatch.undo()
    with pytest.raises(UserError, match="unknown strategy 'fdsp': did you mean 'fsdp'"):
        run(recipe("mae"), data(), tmp_path, (), "fdsp")
    half = load_recipe("mae", str(tiny_recipe("mae")), {"backbone": "vit_nano_patch4_16", "precision": "16-mixed"})
    with pytest.raises(UserError, match="precision 16-mixed has no sharded form"):
        run(half, data(), tmp_path, (), "fsdp")
    assert train.__kwdefaults__["strategy"] == "ddp"

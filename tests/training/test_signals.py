"""A signal that asks to stop: what is done is saved, the status says which, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import tiny_recipe

from ssl_bench.commands.pretrain import run
from ssl_bench.config.recipe import Recipe, load_recipe
from ssl_bench.data.datasets import Splits
from ssl_bench.training import callbacks
from ssl_bench.utils.errors import Stopped

SLURM = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "ours", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


def recipe() -> Recipe:
    values = {"backbone": "vit_nano_patch4_16", "batch_size": 8, "epochs": 2, "base_lr": 1e-2}
    return load_recipe("mae", str(tiny_recipe("mae")), values)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP"])
@pytest.mark.parametrize("slurm", [False, True])
def test_a_signal_saves_and_the_run_goes_on_to_the_same_weights(
    name: str, slurm: bool, tiny_data: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signum = getattr(signal, name)
    before = signal.getsignal(signum)
    for key, value in SLURM.items() if slurm else ():
        monkeypatch.setenv(key, value)
    whole = run(recipe(), tiny_data, tmp_path / "whole")
    shown = callbacks.Report.on_train_batch_end

    def sent(self: callbacks.Report, trainer: object, *others: object) -> None:
        shown(self, trainer, *others)  # type: ignore[arg-type]
        if trainer.global_step == 5:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signum)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Report, "on_train_batch_end", sent)
        with pytest.raises(Stopped) as stopped:
            run(recipe(), tiny_data, tmp_path / "stopped")
    assert stopped.value.code == 128 + signum and stopped.value.name == name
    assert signal.getsignal(signum) == before
    assert torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)["global_step"] == 5
    resumed = run(recipe(), tiny_data, tmp_path / "stopped")
    one, two = (torch.load(path, weights_only=True)["state_dict"] for path in (whole, resumed))
    assert all(torch.equal(one[key], two[key]) for key in one)
    pd.testing.assert_frame_equal(*(pd.read_csv(path.parent / "metrics.csv") for path in (whole, resumed)))


def test_a_signal_that_is_ignored_stays_so(tiny_data: Splits, tmp_path: Path) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run(recipe(), tiny_data, tmp_path / "r")
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stopped_command_says_so_in_one_line_and_its_status(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from ssl_bench import cli
from ssl_bench.utils.errors import Stopped

def stopped(_):
    raise Stopped(signal.SIGTERM)

cli.RUNS["list"] = stopped
sys.exit(cli.main(["list", "methods"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 143 and done.stderr.startswith("ssl-bench: stopped by SIGTERM: the training is saved")


def prepare(folder: Path):  # type: ignore[no-untyped-def]
    def task(index: int) -> None:
        (folder / f"{index}.began").touch()
        try:
            came: list[int] = []
            signal.signal(signal.SIGTERM, lambda signum, _: came.append(signum))
            while not came:
                time.sleep(0.02)
            time.sleep(1.0)  # saving
            (folder / f"{index}.saved").touch()
        finally:
            raise Stopped(came[0])

    return task


def test_a_pool_passes_the_signal_on_and_waits_for_its_processes(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from pathlib import Path
from ssl_bench.launch.pool import run_in_pool
from test_signals import prepare

if __name__ == "__main__":
    run_in_pool(prepare, (Path({str(tmp_path)!r}),), [0, 1], 2)
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, str(script)]) as pool:
        until = time.monotonic() + 300
        while len(list(tmp_path.glob("*.began"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.3)
        pool.send_signal(signal.SIGTERM)
        assert pool.wait(60) == 143
    assert sorted(path.name for path in tmp_path.glob("*.saved")) == ["0.saved", "1.saved"]

"""Checkpoints: whole before they count, and an older one where the newest is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_recipe

from ssl_bench.commands.pretrain import run
from ssl_bench.config.recipe import Recipe, load_recipe
from ssl_bench.data.datasets import Splits
from ssl_bench.training import resume
from ssl_bench.utils import files
from ssl_bench.utils.errors import RunError


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def recipe() -> Recipe:
    values = {"backbone": "vit_nano_patch4_16", "batch_size": 8, "epochs": 2, "base_lr": 1e-2}
    return load_recipe("mae", str(tiny_recipe("mae")), values)


def killed(data: Splits, folder: Path, monkeypatch: pytest.MonkeyPatch, saved: tuple[int, ...] = (3, 5)) -> None:
    """A run that saves at some steps and is killed at step 7."""

    def save_then_die(self: resume.Resume, trainer: object, *_: object) -> None:
        if trainer.global_step in saved:  # type: ignore[attr-defined]
            self.save(trainer)  # type: ignore[arg-type]
        if trainer.global_step == 7:  # type: ignore[attr-defined]
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(resume.Resume, "on_train_batch_end", save_then_die)
        with pytest.raises(Killed):
            run(recipe(), data, folder)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit of the largest tensor."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip])
@pytest.mark.parametrize(("damaged", "step"), [(("last.ckpt",), 3), (("last.ckpt", "previous.ckpt"), 0), ((), 5)])
def test_a_damaged_checkpoint_falls_back_to_the_older(
    damage: object, damaged: tuple[str, ...], step: int, tiny_data: Splits, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole = run(recipe(), tiny_data, tmp_path / "whole")
    folder = tmp_path / "killed"
    killed(tiny_data, folder, monkeypatch)
    for name in damaged:
        damage(folder / name)  # type: ignore[operator]
    found = resume.newest_checkpoint(folder)
    assert (torch.load(found, weights_only=True)["global_step"] if found else 0) == step
    assert capsys.readouterr().err.count("is damaged: the training goes on from an older") == len(damaged)
    one, two = weights(whole), weights(run(recipe(), tiny_data, folder))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not list(folder.glob("*.ckpt")) and not list(folder.glob(f".*{files.TEMPORARY}"))


def test_a_checkpoint_that_cannot_be_read_back_leaves_the_others(
    tiny_data: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(tiny_data, tmp_path, monkeypatch)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.ckpt")}
    assert set(before) == {"last.ckpt", "previous.ckpt"}
    monkeypatch.setattr(resume.Resume.__init__, "__defaults__", (-1.0,))
    with monkeypatch.context() as patch:
        patch.setattr(resume, "is_whole", lambda path: path.suffix == ".ckpt" and files.is_whole(path))
        with pytest.raises(RunError, match=r"cannot write .*last\.ckpt: what was written can't be read back"):
            run(recipe(), tiny_data, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.ckpt")} == before
    assert not list(tmp_path.glob(f".*{files.TEMPORARY}"))


def test_a_damaged_encoder_is_made_again(tiny_data: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run(recipe(), tiny_data, tmp_path)
    before = weights(path)
    truncate(path)
    (tmp_path / "last.ckpt").write_bytes(b"of a process that was killed before it removed this")
    assert run(recipe(), tiny_data, tmp_path) == path
    assert "encoder.pt is damaged: it is made again" in capsys.readouterr().err
    assert all(torch.equal(before[key], value) for key, value in weights(path).items())
    assert not list(tmp_path.glob("*.ckpt"))

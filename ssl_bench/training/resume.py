"""Checkpoints of a training: written now and then and when a signal asks it to stop, and where it goes on from."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from ssl_bench.utils.errors import STOPPING, RunError, Stopped
from ssl_bench.utils.files import is_whole, replacing
from ssl_bench.utils.stopwatch import part

NEWEST, OLDER = "last.ckpt", "previous.ckpt"
AGREE = 10  # steps between two questions whether any process is to save or stop; each waits for the device


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, reads it back, and only then gives up the second newest."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Make it the newest.

        Raises:
            OSError: It can't be written, or what was written can't be read back; the others are untouched.
        """
        path = Path(path)
        with replacing(path) as (file, temporary):
            torch.save(checkpoint, file)
            file.flush()
            if not is_whole(temporary):
                raise OSError(errno.EIO, "what was written can't be read back")
            if path.exists():
                os.replace(path, path.with_name(OLDER))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a folder that isn't damaged; None without one. Damaged ones are named and removed."""
    for path in (folder / NEWEST, folder / OLDER):
        if is_whole(path):
            return path
        if path.exists():
            print(f"{path} is damaged: the training goes on from an older checkpoint or begins anew", file=sys.stderr)
            path.unlink(missing_ok=True)
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove what a finished training no longer needs."""
    for name in (NEWEST, OLDER):
        (folder / name).unlink(missing_ok=True)


class Resume(Callback):
    """Writes ``last.ckpt`` now and then, in at most 2 % of the time, and when a signal asks the training to stop.

    Args:
        folder: Of ``last.ckpt`` and the one before it.
        at_least_every: Seconds; more where a checkpoint takes longer than a fiftieth of them.
    """

    def __init__(self, folder: Path, at_least_every: float = 10.0) -> None:
        self.folder, self.interval = folder, at_least_every
        self.stopping = 0  # the signal's number
        self.elapsed_before = 0.0
        self.started = self.saved = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and watch for signals, instead of Lightning, which restores all handlers at its end."""
        self.started = self.saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup
                    signal.signal(signum, self._stop)

    def _stop(self, signum: int, frame: object) -> None:
        self.stopping = signum

    @property
    def elapsed(self) -> float:
        """Seconds of training, those before an interruption included."""
        return self.elapsed_before + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far."""
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Seconds before the interruption."""
        self.elapsed_before = state_dict["elapsed"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time or a signal has come, never after the last step: the encoder file follows.

        Raises:
            Stopped: After the signal's checkpoint.
        """
        due, stopping = time.monotonic() - self.saved > self.interval, self.stopping
        if trainer.world_size > 1:
            if trainer.global_step % AGREE:
                return
            asked = torch.tensor([due and trainer.is_global_zero, stopping], device=trainer.strategy.root_device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            due, stopping = asked.tolist()
        if (due or stopping) and trainer.global_step < trainer.max_steps:
            before = time.monotonic()
            self.save(trainer)
            self.saved = time.monotonic()
            self.interval = max(self.interval, 50 * (self.saved - before))
            if stopping:
                raise Stopped(stopping)

    @part("checkpoint")
    def save(self, trainer: Trainer) -> None:
        """Write ``last.ckpt``.

        Raises:
            RunError: The disk is full; the checkpoints before are untouched.
        """
        path = self.folder / NEWEST
        try:
            trainer.save_checkpoint(path)
        except (OSError, RuntimeError) as error:
            raise RunError(f"cannot write {path}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What the system said; torch tells of it in words of its own."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__cause__ or cause.__context__
    return str(getattr(cause, "strerror", None) or error)

"""What watches a training: progress, learning curves, and checkpoints for resuming."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from ssl_bench.utils.distributed import all_mean
from ssl_bench.utils.errors import STOPPING, RunError, Stopped
from ssl_bench.utils.progress import INTERVAL, Progress

AGREE = 10  # steps between two questions whether any process is to save or stop; each waits for the device


class Resume(Callback):
    """Writes ``last.ckpt`` now and then, atomically, and when a signal asks the training to stop.

    At most 2 % of the time goes into it.
    """

    def __init__(self, path: Path, at_least_every: float = 10.0) -> None:
        self.path, self.interval = path, at_least_every
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

    def save(self, trainer: Trainer) -> None:
        """Write ``last.ckpt``.

        Raises:
            RunError: The disk is full; the previous checkpoint is untouched.
        """
        temporary = self.path.with_name(f".{self.path.name}.part")
        try:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                os.replace(temporary, self.path)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise RunError(f"cannot write {self.path}: {getattr(error, 'strerror', None) or error}") from error


class Report(Callback):
    """Progress on standard error, and learning curves of a hundred points for the loggers.

    Under several processes a point is the mean over them, which is the value of the joint batch. Reading a scalar makes
    the host wait for the device, so it happens at the log points, and every ten seconds for the progress.

    Args:
        title: In front of the progress.
        points: Points of a curve.
    """

    def __init__(self, title: str, points: int = 100) -> None:
        self.title, self.points = title, points
        self.rows: list[dict[str, float]] = []  # everything logged so far: a run that goes on has it from last.ckpt
        self.extra: dict[str, float] | None = None  # of another callback, for this step
        self.loss = math.nan
        self.progress: Progress | None = None

    def state_dict(self) -> dict[str, Any]:
        """The points of the steps before."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The points of the steps before; what was logged after the checkpoint is done, and logged, again."""
        self.rows = state_dict["rows"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the CSV logger, whose file begins anew, the points of the steps before."""
        self.every = max(1, trainer.max_steps // self.points)
        if trainer.is_global_zero:
            self.progress = Progress(self.title, trainer.max_steps, trainer.global_step)
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                for row in self.rows:
                    logger.log_metrics({key: value for key, value in row.items() if key != "step"}, int(row["step"]))
                logger.save()
        self.read_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log and show."""
        step = trainer.global_step
        due = step % self.every == 0 or step == trainer.max_steps
        if due or self.extra is not None:
            scalars = joint_means(pl_module.scalars) if due else {}  # type: ignore[arg-type]
            row = {"step": step, **(_scheduled(trainer, pl_module) if due else {}), **scalars, **(self.extra or {})}
            self.extra = None
            self.rows.append(row)
            values = {key: value for key, value in row.items() if key != "step"}
            for logger in trainer.loggers:
                logger.log_metrics(values, step)
                logger.save()
            if due:
                self.loss, self.read_at = scalars["loss"], time.monotonic()
                if not math.isfinite(self.loss):
                    raise RunError(f"{self.title}: the loss is {self.loss} at step {step}; try a smaller base_lr")
        if self.progress is not None and self.progress.due:
            if math.isnan(self.loss) or time.monotonic() - self.read_at >= INTERVAL:
                self.loss, self.read_at = float(outputs["loss"]), time.monotonic()
            self.progress.show(step, f"loss {self.loss:.3f}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the bar away."""
        if self.progress is not None:
            self.progress.close()
            self.progress = None


def joint_means(scalars: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over the processes of what each has computed from its part of the batch, read from the device at once.

    Example:
        >>> joint_means({"loss": torch.tensor(2.5), "accuracy": torch.tensor(0.5)})
        {'loss': 2.5, 'accuracy': 0.5}
    """
    device = scalars["loss"].device
    values = torch.stack([value.detach().to(device, torch.float32) for value in scalars.values()])
    return dict(zip(scalars, all_mean(values).tolist(), strict=True))


def _scheduled(trainer: Trainer, method: Any) -> dict[str, float]:
    """What the schedules gave for the step just done: the learning rate, and weight decay and momentum if any."""
    done = trainer.global_step - 1
    values = {"lr": method.learning_rate(done, trainer.max_steps)}
    followed = [group for group in trainer.optimizers[0].param_groups if not group["own_weight_decay"]]
    if followed:
        values["weight_decay"] = followed[0]["weight_decay"]
    if method.current_momentum is not None:
        values["momentum"] = method.current_momentum
    return values

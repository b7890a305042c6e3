"""What watches a training: progress and learning curves."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from ssl_bench.utils.distributed import all_mean
from ssl_bench.utils.progress import INTERVAL, Progress
from ssl_bench.utils.stopwatch import part


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

    @part("log")
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
        if self.progress is not None and self.progress.due:
            if math.isnan(self.loss) or time.monotonic() - self.read_at >= INTERVAL:
                latest: Any = pl_module.scalars
                self.loss, self.read_at = float(latest["loss"].detach()), time.monotonic()
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

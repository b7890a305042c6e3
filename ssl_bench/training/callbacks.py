"""What watches a training: progress and log, checkpoints for resuming, an online k-NN and collapse meters."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from ssl_bench.utils.errors import RunError
from ssl_bench.utils.progress import interactive


class Resume(Callback):
    """Writes ``last.ckpt`` now and then, atomically. At most 2 % of the time goes into it."""

    def __init__(self, path: Path, at_least_every: float = 10.0) -> None:
        self.path, self.interval = path, at_least_every
        self.elapsed_before = 0.0
        self.started = self.saved = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.started = self.saved = time.monotonic()

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
        """Save when it is time, never after the last step: the encoder file follows."""
        due = trainer.strategy.broadcast(time.monotonic() - self.saved > self.interval)
        if due and trainer.global_step < trainer.max_steps:
            before = time.monotonic()
            self.save(trainer)
            self.saved = time.monotonic()
            self.interval = max(self.interval, 50 * (self.saved - before))

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
    """A progress bar on a terminal, a plain line every ten seconds elsewhere, and ``log.jsonl`` with a hundred points.

    Reading a scalar makes the host wait for the device, so it happens at the log points and nowhere else.
    """

    def __init__(self, path: Path, title: str, points: int = 100) -> None:
        self.path, self.title, self.points = path, title, points
        self.lines: list[str] = []
        self.bar: Any = None
        self.writes = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the log of the steps before an interruption, drop what is done again."""
        self.every = max(1, trainer.max_steps // self.points)
        self.started = self.shown = time.monotonic()
        self.first = trainer.global_step
        self.writes = trainer.is_global_zero
        if self.path.exists():
            kept = (line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n"))
            self.lines = [line for line in kept if json.loads(line)["step"] <= self.first]
        if self.writes:
            self.path.write_text("".join(self.lines))
        if interactive() and trainer.is_global_zero:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps,")
            self.bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task(self.title, total=trainer.max_steps, completed=self.first)
            self.bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show and log."""
        step, now = trainer.global_step, time.monotonic()
        if step % self.every == 0 or step == trainer.max_steps:
            scalars = {key: float(value.detach()) for key, value in pl_module.scalars.items()}  # type: ignore[union-attr,operator]
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            self.log_line(step=step, lr=lr, **scalars)
            if not math.isfinite(scalars["loss"]):
                raise RunError(f"{self.title}: the loss is {scalars['loss']} at step {step}; try a smaller base_lr")
            if self.bar:
                self.bar.update(self.task, description=f"{self.title}  loss {scalars['loss']:.3f}")
        if now - self.shown < (0.1 if self.bar else 10):
            return
        self.shown = now
        if self.bar:
            self.bar.update(self.task, completed=step)
        elif trainer.is_global_zero:
            left = (now - self.started) / (step - self.first) * (trainer.max_steps - step)
            loss = float(outputs["loss"])
            print(
                f"{self.title}: step {step:,} of {trainer.max_steps:,}, loss {loss:.3f}, {left:.0f} s left",
                file=sys.stderr,
            )

    def log_line(self, **values: float) -> None:
        """Append one line to the log."""
        if not self.writes:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the bar away."""
        if self.bar:
            self.bar.stop()
            self.bar = None

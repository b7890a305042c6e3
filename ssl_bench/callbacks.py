"""What watches a training: progress and log, checkpoints for resuming, an online k-NN and collapse meters."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy

from ssl_bench.compute import autocast
from ssl_bench.data import ImageSet
from ssl_bench.errors import RunError
from ssl_bench.progress import interactive
from ssl_bench.views import eval_images, resize_crop


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


class Monitor(Callback):
    """k-NN on held-out training images and collapse meters, a few times a run, logged beside the loss.

    It costs a few hundred forward passes a time; nothing is selected by it.
    """

    def __init__(self, report: Report, bank: ImageSet, queries: ImageSet, times: int = 4, size: int = 512) -> None:
        self.report, self.times = report, times
        generator = torch.Generator().manual_seed(0)
        self.sets = [
            images.subset(torch.randperm(len(images), generator=generator)[:size], "dev") for images in (bank, queries)
        ]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure at equal distances."""
        every = max(1, trainer.max_steps // self.times)
        if not hasattr(pl_module.encoder, "features"):  # a tokenizer
            return
        if trainer.global_step % every == 0 and trainer.is_global_zero:
            self.report.log_line(step=trainer.global_step, **self.measure(pl_module))

    @torch.no_grad()
    def measure(self, method: LightningModule) -> dict[str, float]:
        """Accuracy in percent, and the spread of the features."""
        from ssl_bench.evaluations.knn import votes  # here: evaluators that train are built on this module

        encoder: Any = method.encoder
        training = encoder.training
        encoder.eval()
        features = []
        for images in self.sets:
            size: Any = method.backbone.image_size  # type: ignore[union-attr]
            pixels = images.decoded
            if pixels is None:  # of several sizes
                pixels = torch.stack([resize_crop(images.images[i], size) for i in range(len(images))])
            batch = eval_images(pixels.to(method.device), size)
            with autocast(method.device, method.trainer.precision):
                features.append(encoder.features(batch, encoder.poolings[1:2])[encoder.poolings[1]])
        encoder.train(training)
        bank, queries = features
        nearest = (F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T).topk(min(20, len(bank)), dim=1)
        labels = self.sets[0].labels.to(bank.device)
        n_classes = len(self.sets[0].classes)
        ((_, vote),) = votes(nearest.values, labels[nearest.indices], n_classes, [nearest.values.shape[1]], 0.07)
        truth = self.sets[1].labels.to(bank.device)
        top1 = multiclass_accuracy(vote.argmax(1), truth, n_classes, average="micro")
        return {"knn": 100 * float(top1), **collapse_meters(bank)}


def collapse_meters(features: Tensor) -> dict[str, float]:
    """How far features are from collapse.

    Args:
        features: (N, D) float.

    Returns:
        ``feature_std``: mean standard deviation of the L2-normalised features times sqrt(D), 1 when they fill the
        sphere, 0 when all are equal. ``effective_rank``: exp(entropy) of the normalised singular values (Roy and
        Vetterli 2007), 1 to D.

    Example:
        >>> collapse_meters(torch.ones(8, 4))
        {'feature_std': 0.0, 'effective_rank': 1.0}
    """
    std = F.normalize(features.float(), dim=1).std(dim=0).mean() * features.shape[1] ** 0.5
    singular = torch.linalg.svdvals((features - features.mean(dim=0)).float())
    p = singular / singular.sum().clamp(min=1e-12)
    entropy = -(p * p.clamp(min=1e-12).log()).sum()
    return {"feature_std": float(std), "effective_rank": float(entropy.exp())}

"""The training loop, a Lightning trainer: exact to resume, the same for pre-training and for evaluators that train."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from ssl_bench.data.datasets import ImageSet
from ssl_bench.data.loader import Loader, batches
from ssl_bench.methods.method import Method
from ssl_bench.nn.sharding import unshard
from ssl_bench.training.blocks import prepare_blocks
from ssl_bench.training.callbacks import Report
from ssl_bench.training.compute import best_precision, device_name, peak_memory, reset_peak_memory, step_cost
from ssl_bench.training.health import Health
from ssl_bench.training.loggers import make_loggers
from ssl_bench.training.monitor import Monitor
from ssl_bench.training.resume import CheckpointFiles, Resume, newest_checkpoint
from ssl_bench.training.sharded import Sharded
from ssl_bench.utils.errors import Stopped, UserError, unknown
from ssl_bench.utils.memory import keep_freed_memory

STRATEGIES = ("ddp", "fsdp")  # weights whole in every process, or sharded


def train(
    method: Method,
    images: ImageSet,
    folder: Path,
    title: str,
    *,
    monitored: tuple[ImageSet, ImageSet] | None = None,
    loggers: Sequence[str] = ("csv",),
    drop_last: bool = True,
    uneven: bool = False,
    strategy: str = "ddp",
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Fit a method by its ``training_config`` and ``seed``, or go on where ``last.ckpt`` in the folder left off.

    Args:
        method: Trained in place; it ends up on the training device.
        images: The training images.
        folder: For ``last.ckpt`` and the learning curves.
        title: In front of the progress.
        monitored: Bank and queries of the online k-NN; without them there is none.
        loggers: Of ``loggers.LOGGERS``.
        drop_last: Leave out the images that do not fill an epoch's last batch; otherwise they are one.
        uneven: Allow batches that several processes can't share evenly; each computes all of such a batch.
        strategy: Of ``STRATEGIES``, where there are several processes.
        callbacks: Called before the trainer's own.

    Returns:
        What it cost: the fields of a row's ``pretraining``.

    Raises:
        UserError: The batch is larger than the data.
        RunError: The loss diverged (``health.Diverged``), the codebook is dead, or the disk is full.
        Stopped: SIGTERM, SIGUSR1 or SIGHUP came, and ``last.ckpt`` has everything until then.
    """
    keep_freed_memory()
    config = method.training_config
    if strategy not in STRATEGIES:
        raise unknown("strategy", strategy, STRATEGIES)
    if strategy == "fsdp" and config.precision == "16-mixed":
        raise UserError("strategy fsdp: precision 16-mixed has no sharded form; choose bf16-mixed or 32")
    if len(images) < config.batch_size:
        raise UserError(
            f"batch_size {config.batch_size} is larger than the {len(images)} training images of {images.name}"
        )
    per_epoch = batches(len(images), config.batch_size, drop_last=drop_last)
    steps = max(1, round(config.epochs * per_epoch))
    precision = best_precision(config.precision)
    folder.mkdir(parents=True, exist_ok=True)
    resume, report = Resume(folder), Report(title)
    monitors = [Monitor(title, report, *monitored)] if monitored else []
    last = newest_checkpoint(folder)
    _quiet()
    trainer = Trainer(
        max_steps=steps,
        max_epochs=1,
        precision=precision,  # type: ignore[arg-type]
        **_launched(strategy),
        callbacks=[*callbacks, *monitors, report, Health(title), resume],
        logger=make_loggers(loggers, folder, _steps_done(last)),
        enable_autolog_hparams=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    shares = config.accumulate * trainer.world_size
    if config.accumulate > 1 and strategy == "fsdp" and trainer.world_size > 1:
        raise UserError(f"accumulate {config.accumulate}: the parts of a batch can't follow one another with fsdp")
    if config.accumulate > 1 and (config.batch_size % shares or not drop_last):
        raise UserError(
            f"accumulate {config.accumulate}: {shares} equal parts of batch_size {config.batch_size} can't be"
        )
    device = trainer.strategy.root_device
    cost = step_cost(method.to(device), config.batch_size, len(images.classes))
    prepare_blocks(method, config)
    for monitor in monitors if hasattr(method.encoder, "features") else ():  # a codebook needs all images to be judged
        monitor.fit_to(cost.encodings(method) * config.batch_size * steps)
    reset_peak_memory(device)
    loader = Loader(
        images,
        method.drawn_views,
        batch_size=config.batch_size,
        steps=steps,
        seed=method.seed,
        rank=trainer.global_rank,
        world=trainer.world_size,
        device=device if device.type == "cuda" else None,
        drop_last=drop_last,
        uneven=uneven,
    )
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(method, loader, ckpt_path=last, weights_only=True if last else None)
    except Stopped:
        raise
    except SystemExit as error:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGINT, interrupt)
    unshard(method)
    whole, rest = divmod(steps, per_epoch)
    seen = whole * min(per_epoch * config.batch_size, len(images)) + rest * config.batch_size
    return {
        "epochs": config.epochs,
        "steps": steps,
        "batch_size": config.batch_size,
        "images_seen": seen,
        "patches_encoded": round(cost.patches * seen),
        "patches_encoded_without_gradient": round(cost.patches_without_gradient * seen),
        "patches_per_image": cost.patches,
        "flops": cost.flops * seen,
        "wall_seconds": round(resume.elapsed, 2),
        "peak_memory_bytes": peak_memory(device),
        "device": device_name(device),
        "precision": precision,
        "final_loss": report.loss,
    }


def _steps_done(checkpoint: Path | None) -> int:
    """Optimiser steps of a checkpoint."""
    if checkpoint is None:
        return 0
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def _launched(strategy: str) -> dict[str, Any]:
    """One process, or those that `torchrun -m ssl_bench.cli pretrain ...` has started."""
    world, local = (int(os.environ.get(key, "1")) for key in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    # Named, so that Lightning doesn't take a job of SLURM for its own: it would save and requeue by itself.
    environment = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()
    if world == 1:
        return {"devices": 1, "plugins": [environment, CheckpointFiles()]}
    return {
        "devices": local,
        "num_nodes": world // local,
        "strategy": Sharded(world) if strategy == "fsdp" else strategy,
        "plugins": [environment, CheckpointFiles()],
    }


def _quiet() -> None:
    """Lightning's hints about loggers, workers and tensor cores are about choices made here on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

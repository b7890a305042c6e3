"""One pre-training run: recipe -> data -> method -> Lightning trainer -> encoder file."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything

from ssl_bench.backbone import Backbone
from ssl_bench.callbacks import Monitor, Report, Resume
from ssl_bench.checkpoint import Checkpoint, code_version, load_encoder, save_encoder, save_weights
from ssl_bench.compute import best_precision, device_name, meter, peak_memory, reset_peak_memory
from ssl_bench.data import ImageSet, Splits, hold_out, load
from ssl_bench.errors import UserError
from ssl_bench.files import content_hash, locked, source_hash
from ssl_bench.loader import Loader
from ssl_bench.methods.method import Method, step_seed
from ssl_bench.nets import process
from ssl_bench.recipe import FROM_DATA, Recipe, load_recipe
from ssl_bench.views import describe, make_views, view_image


def pretrain(
    method: str,
    *,
    recipe: str | None = None,
    data: str | None = None,
    backbone: str | None = None,
    epochs: float | None = None,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    skip_unreadable: bool = False,
) -> Path:
    """Pre-train a method: the Python form of ``ssl-bench pretrain``.

    Returns:
        The encoder file.
    """
    given = {"data": data, "backbone": backbone, "epochs": epochs, "seed": seed}
    layers = {key: value for key, value in given.items() if value is not None} | dict(overrides or {})
    resolved = load_recipe(method, recipe, layers)
    images = load(resolved.data, skip_unreadable=skip_unreadable)
    return run(resolved, images, Path(out) if out else run_folder(resolved, images))


def run_folder(recipe: Recipe, data: Splits, root: str | Path = "runs") -> Path:
    """``runs/mae-cifar10-0-1a2b3c4d5e6f``: the same recipe on the same images is the same folder."""
    key = content_hash({"recipe": recipe.as_dict(), "data": data.train.fingerprint})
    return Path(root) / f"{recipe.method}-{data.train.name}-{recipe.seed}-{key[:12]}"


def run(recipe: Recipe, data: Splits, folder: Path) -> Path:
    """Train, or go on where ``last.ckpt`` in the folder left off, and write ``encoder.pt``; at once if it is there.

    Raises:
        UserError: The recipe does not fit the data.
        RunError: The loss diverged or the disk is full.
    """
    target = folder / "encoder.pt"
    if target.exists():
        return target
    with locked(folder) if is_first() else contextlib.nullcontext():
        if not target.exists():  # another process may have made it meanwhile
            _make(recipe, data, folder, target)
    if process()[1] > 1:
        torch.distributed.barrier()  # the file is there when any process goes on
    return target


def _make(recipe: Recipe, data: Splits, folder: Path, target: Path) -> None:
    fit, dev = hold_out(data.train)
    images = fit if recipe.cls.uses_labels else data.train
    beside = {keyword: run_folder(needed, data, folder.parent) for keyword, needed in recipe.targets.items()}
    networks = {keyword: load_encoder(run(recipe.targets[keyword], data, beside[keyword])) for keyword in beside}
    method = build(recipe, images.classes)
    for keyword in recipe.cls.targets:
        found = networks.get(keyword)
        method.set_target(keyword, found.encoder.requires_grad_(False) if found else None)
    cost, facts = no_cost(), {}
    if recipe.cls.trains:
        cost = train(method, recipe, images, (fit, dev), folder)
        facts = method.finish(images)
    if not is_first():
        return
    encoder: Any = method.encoder
    about = {
        "recipe": recipe.as_dict(),
        "views": describe(method.views) if recipe.cls.trains else "",
        "pretraining": {
            "data": images.name,
            "fingerprint": images.fingerprint,
            "images": len(images),
            "skipped": images.skipped,
            "seed": recipe.seed,
            **cost,
            "facts": facts,
            "targets": {keyword: _target(network, beside[keyword]) for keyword, network in networks.items()},
        },
        "paper": recipe.cls.paper,
        "category": recipe.cls.category,
        "flags": list(dict.fromkeys([*method.flags, *(f for n in networks.values() for f in n.about["flags"])])),
        "deviations": list(recipe.cls.deviations),
        "method_source": source_hash(inspect.getfile(recipe.cls)),
        "code": code_version(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / "method.pt", method)
    save_encoder(target, encoder, getattr(encoder, "spec", recipe.backbone), recipe.method, about)
    (folder / "last.ckpt").unlink(missing_ok=True)


def _target(network: Checkpoint, folder: Path) -> dict[str, Any]:
    """What a row says about a target network that was pre-trained for it."""
    spent = network.about["pretraining"]
    kept = ("images_seen", "flops", "wall_seconds", "facts")
    return {
        "method": network.method,
        "run": folder.name,
        "sha256": network.sha256,
        **{key: spent[key] for key in kept},
    }


def build(recipe: Recipe, classes: Sequence[str]) -> Method:
    """The method with its backbone at the initial weights of the recipe's seed."""
    seed_everything(recipe.seed, verbose=False)
    known = {"num_classes": len(classes), "class_names": tuple(classes)}
    wanted = {key: known[key] for key in FROM_DATA if key in inspect.signature(recipe.cls).parameters}
    method = recipe.cls(Backbone(**recipe.backbone), **wanted, **recipe.settings)
    method.plan, method.seed = recipe.training, recipe.seed
    return method


def train(
    method: Method, recipe: Recipe, images: ImageSet, monitored: tuple[ImageSet, ImageSet], folder: Path
) -> dict[str, Any]:
    """Fit the method and say what it cost."""
    plan = recipe.training
    per_epoch = len(images) // plan.batch_size
    if per_epoch == 0:
        raise UserError(
            f"batch_size {plan.batch_size} is larger than the {len(images)} training images of {images.name}"
        )
    steps = max(1, round(plan.epochs * per_epoch))
    precision = best_precision(plan.precision)
    folder.mkdir(parents=True, exist_ok=True)
    resume, report = Resume(folder / "last.ckpt"), Report(folder / "log.jsonl", f"{recipe.method}, seed {recipe.seed}")
    _quiet()
    trainer = Trainer(
        max_steps=steps,
        max_epochs=1,
        precision=precision,  # type: ignore[arg-type]
        **_launched(),
        callbacks=[report, Monitor(report, *monitored), resume],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    device = trainer.strategy.root_device
    cost = measure(method.to(device), images, precision)
    reset_peak_memory(device)
    loader = Loader(
        images,
        method.views,
        batch_size=plan.batch_size,
        steps=steps,
        seed=recipe.seed,
        rank=trainer.global_rank,
        world=trainer.world_size,
        device=device if device.type == "cuda" else None,
    )
    last = resume.path if resume.path.exists() else None
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(method, loader, ckpt_path=last, weights_only=True if last else None)
    except SystemExit as error:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGINT, interrupt)
    seen = steps * plan.batch_size
    return {
        "epochs": plan.epochs,
        "steps": steps,
        "batch_size": plan.batch_size,
        "images_seen": seen,
        "patches_encoded": round(cost["patches"] * seen),
        "target_patches_encoded": round(cost["target_patches"] * seen),
        "patches_per_image": cost["patches"],
        "flops": cost["flops"] * seen,
        "wall_seconds": round(resume.elapsed, 2),
        "peak_memory_bytes": peak_memory(device),
        "device": device_name(device),
        "precision": precision,
        "final_loss": float(method.scalars["loss"].detach()),
    }


def is_first() -> bool:
    """Whether this is the only process of a run, or the first that `torchrun` has started: the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def _launched() -> dict[str, Any]:
    """One process, or those that `torchrun -m ssl_bench.cli pretrain ...` has started."""
    world, local = (int(os.environ.get(key, "1")) for key in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world == 1:
        return {"devices": 1}
    return {"devices": local, "num_nodes": world // local, "strategy": "ddp"}


def measure(method: Method, images: ImageSet, precision: str) -> dict[str, float]:
    """Cost of one image (see ``compute.meter``) on a few real ones."""
    few = [images.images[i] for i in range(min(4, len(images)))]
    if images.decoded is not None:
        generator = torch.Generator(method.device).manual_seed(step_seed(0, 0))
        views = make_views(torch.stack(few).to(method.device), method.views, generator)
    else:
        views = [
            torch.stack(v).to(method.device) for v in zip(*(view_image(i, method.views, 0) for i in few), strict=True)
        ]
    method.labels = images.labels[: len(few)].to(method.device)
    return meter(method, views, precision)


def no_cost() -> dict[str, Any]:
    """What a baseline without training costs."""
    zero = {
        key: 0 for key in ("epochs", "steps", "batch_size", "images_seen", "patches_encoded", "flops", "wall_seconds")
    }
    return zero | {"target_patches_encoded": 0, "patches_per_image": 0, "peak_memory_bytes": 0}


def _quiet() -> None:
    """Lightning's hints about loggers, workers and tensor cores are about choices made here on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

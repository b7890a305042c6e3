"""One pre-training run: recipe -> data -> method -> Lightning trainer -> encoder file."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ssl_bench.checkpoints.encoder_file import (
    Checkpoint,
    code_version,
    is_encoder_file,
    load_encoder,
    named_encoder,
    read_checkpoint,
    save_encoder,
    save_weights,
)
from ssl_bench.config.build import build, set_teachers
from ssl_bench.config.method_facts import method_facts
from ssl_bench.config.recipe import Recipe, load_recipe
from ssl_bench.data.datasets import Splits, hold_out, load
from ssl_bench.data.own import DataPair
from ssl_bench.data.shrinking import shrunk
from ssl_bench.training.loggers import DEFAULT, check_loggers
from ssl_bench.training.resume import newest_checkpoint, remove_checkpoints
from ssl_bench.training.trainer import train
from ssl_bench.utils.distributed import is_first, process
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import is_whole, locked, read_regular, remove_leftovers, remove_unused, write_atomic
from ssl_bench.utils.identity import identify, source_hash
from ssl_bench.views.view import describe

BEGUN = "run.id"  # in the folder of a run that isn't finished
PARTS = {  # of an identity, in the words of errors
    "method": "its method",
    "source": "the method's file",
    "settings": "the method's settings",
    "backbone": "the backbone",
    "backbone_source": "the backbone's file",
    "training": "the training",
    "optimizer_source": "the optimizer's file",
    "seed": "the seed",
    "images": "the images",
    "teachers": "the teachers",
    "versions": "the versions of its parts",
}


def pretrain(
    method: str,
    *,
    recipe: str | None = None,
    data: str | DataPair | Splits | None = None,
    backbone: str | None = None,
    epochs: float | None = None,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    skip_unreadable: bool = False,
    logger: Sequence[str] = DEFAULT,
    strategy: str = "ddp",
) -> Path:
    """Pre-train a method: the Python form of ``ssl-bench pretrain``.

    Args:
        method: A registered name, ``package.module:Class`` or ``path/to/file.py:Class``.
        recipe: Name of a shipped recipe or a YAML file; the class's defaults alone when left out.
        data: Instead of the recipe's; as of ``data.datasets.load``.
        backbone: Instead of the recipe's.
        epochs: Instead of the recipe's.
        seed: Instead of the recipe's.
        overrides: Other keys of the recipe.
        out: Folder of the run; ``runs/...`` when left out.
        skip_unreadable: Leave unreadable images out and count them in the rows.
        logger: Where the learning curves go: any of csv, tensorboard, wandb.
        strategy: How several processes share the work: "ddp", or "fsdp" for networks whose weights and moments don't
            fit into one GPU. The numbers are the same.

    Returns:
        The encoder file.

    Raises:
        UserError: The request is wrong, or ``out`` holds the encoder of another; nothing has been run.
        RunError: The loss diverged or the disk is full.
    """
    check_loggers(logger)
    images = None if data is None or isinstance(data, str) else load(data, skip_unreadable=skip_unreadable)
    given = {"data": images.train.name if images else data, "backbone": backbone, "epochs": epochs, "seed": seed}
    layers = {key: value for key, value in given.items() if value is not None} | dict(overrides or {})
    resolved = load_recipe(method, recipe, layers)
    images = images or load(resolved.data, skip_unreadable=skip_unreadable)
    if is_first() and (said := shrunk(images.train, [resolved.backbone["name"]])):
        print(f"{said}; --backbone takes one of another size", file=sys.stderr)
    folder = Path(out) if out else run_folder(resolved, images)
    if is_whole(folder / "encoder.pt"):
        check_same(folder / "encoder.pt", resolved, images)
        if is_first():
            print(f"{folder} was trained before", file=sys.stderr)
    return run(resolved, images, folder, logger, strategy)


def run_folder(recipe: Recipe, data: Splits, root: str | Path = "runs") -> Path:
    """``runs/mae-cifar10-0-1a2b3c4d5e6f``: the same identity (``Recipe.identity``) is the same folder."""
    return Path(root) / f"{recipe.method}-{data.train.name}-{recipe.seed}-{identify(recipe.identity(data))[:12]}"


def run(recipe: Recipe, data: Splits, folder: Path, loggers: Sequence[str] = DEFAULT, strategy: str = "ddp") -> Path:
    """Train, or go on where ``last.ckpt`` in the folder left off, and write ``encoder.pt``; at once if it is there.

    Raises:
        UserError: The recipe does not fit the data, or another run wrote its encoder there meanwhile.
        RunError: The loss diverged or the disk is full.
    """
    target = folder / "encoder.pt"
    if is_whole(target):
        if is_first():  # of a process that was killed when the encoder was there
            remove_leftovers(folder)
            remove_checkpoints(folder)
        return target
    if target.exists():
        print(f"{target} is damaged: it is made again", file=sys.stderr)
    with _held(folder) if is_first() else contextlib.nullcontext():
        if is_whole(target):  # another process has made it meanwhile
            check_same(target, recipe, data)
        else:
            if is_first():
                remove_leftovers(folder)
            _make(recipe, data, folder, target, loggers, strategy)
    if process()[1] > 1:
        torch.distributed.barrier()  # the file is there when any process goes on
    return target


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the folder of a run against other processes; one in which nothing was made is taken away."""
    with locked(folder):
        try:
            yield
        finally:
            if newest_checkpoint(folder) is None:
                (folder / BEGUN).unlink(missing_ok=True)
            remove_unused(folder)


def check_same(target: Path, recipe: Recipe, data: Splits) -> None:
    """See that an encoder file is the one that a recipe makes of a data set.

    Raises:
        UserError: It is another; it says whose, and in what it differs.
    """
    made, wanted = _identity(target), recipe.identity(data)
    if identify(made) == identify(wanted):
        return
    differs = [PARTS[key] for key in PARTS if identify({key: made.get(key)}) != identify({key: wanted.get(key)})]
    held = f"an encoder of {made['method']}, seed {made.get('seed')}" if "method" in made else "an encoder of no run"
    how = f", which differs in {', '.join(differs)}" if "method" in made else ""
    raise UserError(f"{target.parent} holds {held}{how}: name another --out")


def _identity(target: Path) -> dict[str, Any]:
    """The identity that an encoder file states; empty where it states none."""
    content = read_checkpoint(target)
    about = content.get("about") if is_encoder_file(content) else None
    found = about.get("identity") if isinstance(about, dict) else None
    return found if isinstance(found, dict) else {}


def _make(recipe: Recipe, data: Splits, folder: Path, target: Path, loggers: Sequence[str], strategy: str) -> None:
    fit, dev = hold_out(data.train)
    source = source_hash(recipe.cls)  # before it trains: files may be edited meanwhile
    images, identity = recipe.images(data), recipe.identity(data)
    beside = {keyword: run_folder(needed, data, folder.parent) for keyword, needed in recipe.teachers.items()}
    trained = {
        keyword: load_encoder(run(recipe.teachers[keyword], data, beside[keyword], loggers, strategy))
        for keyword in beside
    }
    files = {keyword: file for keyword in recipe.cls.teachers if (file := named_encoder(recipe.settings[keyword]))}
    begun = newest_checkpoint(folder) is not None  # which has what the backbone took from the images
    _begin(folder, recipe, identify(identity), begun)
    method = build(recipe, images.classes, None if begun else images)
    set_teachers(method, trained, files, images.name)
    cost, facts = no_cost(), {}
    if recipe.cls.trains:
        if not begun:
            method.prepare(images)
        title = f"{recipe.method}, seed {recipe.seed}"
        cost = train(method, images, folder, title, monitored=(fit, dev), loggers=loggers, strategy=strategy)
        facts = method.finish(images)
    if not is_first():
        return
    encoder: Any = method.encoder
    about = {
        "recipe": recipe.as_dict(),
        "identity": identity,
        "views": describe(method.views) if recipe.cls.trains else "",
        "pretraining": {
            "data": images.name,
            **({"given": images.given} if images.given else {}),
            "fingerprint": images.fingerprint,
            "images": len(images),
            "skipped": images.skipped,
            "seed": recipe.seed,
            **cost,
            "facts": facts,
            "teachers": {keyword: _teacher(network, beside[keyword]) for keyword, network in trained.items()},
        },
        "input": {"mean": list(encoder.mean), "std": list(encoder.std)} if hasattr(encoder, "mean") else None,
        "paper": recipe.cls.paper,
        "category": recipe.cls.category,
        "flags": list(dict.fromkeys(method.flags)),
        "deviations": [*recipe.cls.deviations, *method_facts(recipe.method).deviations_on(recipe.backbone["name"])],
        "method_source": source,
        "code": code_version(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / "method.pt", method)
    save_encoder(target, encoder, encoder.spec, recipe.method, about)
    remove_checkpoints(folder)
    (folder / BEGUN).unlink(missing_ok=True)


def _begin(folder: Path, recipe: Recipe, identity: str, begun: bool) -> None:
    """Note whose checkpoints a folder holds.

    Raises:
        UserError: It holds those of another run.
    """
    note = folder / BEGUN
    if begun and note.exists() and read_regular(note, 100) != identity.encode():
        raise UserError(
            f"{folder} holds the checkpoints of another run than {recipe.method}, seed {recipe.seed}, as it is now: "
            "name another --out, or remove it"
        )
    if is_first():
        write_atomic(note, identity)


def _teacher(network: Checkpoint, folder: Path) -> dict[str, Any]:
    """What a row says about a teacher that was pre-trained for it."""
    spent = network.about["pretraining"]
    kept = ("images_seen", "flops", "wall_seconds", "facts")
    return {
        "method": network.method,
        "run": folder.name,
        "sha256": network.sha256,
        **{key: spent[key] for key in kept},
    }


def no_cost() -> dict[str, Any]:
    """What a baseline without training costs."""
    zero = {
        key: 0 for key in ("epochs", "steps", "batch_size", "images_seen", "patches_encoded", "flops", "wall_seconds")
    }
    return zero | {"patches_encoded_without_gradient": 0, "patches_per_image": 0, "peak_memory_bytes": 0}

"""Evaluate one encoder with several evaluators: one feature extraction, one row each."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_bench.backbones.backbone import RGB
from ssl_bench.checkpoints.encoder_file import Checkpoint, load_encoder
from ssl_bench.checkpoints.model import as_checkpoint, is_model, load_model
from ssl_bench.config.protocol import named_evaluators, tried_evaluator
from ssl_bench.data.datasets import Splits, hold_out, load
from ssl_bench.data.own import DataPair
from ssl_bench.data.shrinking import shrunk
from ssl_bench.evaluations.evaluator import Data, Evaluator, Result, match_poolings
from ssl_bench.evaluations.feature_cache import ROOT as FEATURES
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.results.rows.identity import encoder_identity, number_identity
from ssl_bench.results.rows.make import code_of, make_row, write_row
from ssl_bench.results.rows.predictions import is_measured
from ssl_bench.results.rows.row import Row, row_path
from ssl_bench.results.rows.warnings import warnings_of
from ssl_bench.training.compute import device_name
from ssl_bench.utils.distributed import first_says, is_first, joined, one_process, process
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import locked, remove_leftovers, remove_unused
from ssl_bench.utils.identity import identify

EVALUATIONS = Path("runs/evaluations")  # a folder for each that is running, for what it must not lose


def evaluate(
    checkpoint: str | Path | Callable[..., Any],
    *,
    evaluations: Sequence[str | type[Evaluator] | Evaluator] = ("knn", "linear"),
    data: str | DataPair = "shapes",
    backbone: str | None = None,
    name: str | None = None,
    image_size: int | None = None,
    mean: RGB | None = None,
    std: RGB | None = None,
    out: str | Path = "results/evaluations",
    skip_unreadable: bool = False,
) -> list[Row]:
    """Evaluate an encoder file or a model: the Python form of ``ssl-bench evaluate``.

    Args:
        checkpoint: An encoder file, plain timm weights (with ``backbone``), what ``checkpoints.model.load_model``
            takes, or in Python any network or function from (B, 3, H, W) normalised images to (B, D) features.
        evaluations: Names, YAML files, ``file.py:Class``, or in Python evaluators and classes of evaluators.
        data: As of ``data.datasets.load``.
        backbone: Which backbone plain timm weights are for.
        name: Of a model, in tables; its own when left out.
        image_size: Pixels of the side of a model's images; its own when left out.
        mean: Of a model's images, per channel, on the scale [0, 1]; its own when left out.
        std: Likewise.
        out: Folder of the rows.
        skip_unreadable: Leave unreadable images out and count them.

    Returns:
        One row an evaluation; rows that exist already are read, not made again. Started by ``torchrun``, several
        processes share the extraction of features and the training of networks and probes; the first solves heads on
        extracted features, and returns the rows.

    Raises:
        UserError: The request is wrong; nothing has been evaluated.
    """
    evaluators = named_evaluators(evaluations, tried_evaluator)
    of_model: dict[str, Any] = {"name": name, "image_size": image_size, "mean": mean, "std": std}
    if not isinstance(checkpoint, str | Path):
        encoder = as_checkpoint(checkpoint, **of_model)
    elif is_model(str(checkpoint)):
        encoder = load_model(str(checkpoint), **of_model)
    elif given := [key for key, value in of_model.items() if value is not None]:
        raise UserError(f"{checkpoint} is an encoder file, which says its {given[0].replace('_', ' ')} itself")
    else:
        encoder = load_encoder(checkpoint, backbone)
    splits = load(data, skip_unreadable=skip_unreadable)
    sides: Any = getattr(encoder.encoder, "image_size", (sys.maxsize,))  # a tokenizer is refused further on
    seen = {encoder.backbone["name"]: min(sides)} if shrinks(evaluators.values()) else {}
    if is_first() and (said := shrunk(splits.train, seen)):
        print(said, file=sys.stderr)
    return run_evaluations(encoder, evaluators, splits, Path(out), suite=None)


def shrinks(evaluators: Iterable[Evaluator]) -> bool:
    """Whether any evaluator sees images at the encoder's size; those of maps and clips see them at their own."""
    return any(each.needs in ("", "labels", "label sets", "factors") for each in evaluators)


def lacking(evaluator: Evaluator, splits: Splits) -> str:
    """What an evaluator needs that a data set doesn't have, in words; empty where nothing is missing."""
    needs, offers = evaluator.needs, splits.train.offers & splits.test.offers
    if not needs or needs in offers:
        return ""
    return f"{splits.train.name} has no {needs}, but {', '.join(sorted(offers)) or 'pixels alone'}"


def run_evaluations(
    checkpoint: Checkpoint, evaluators: Mapping[str, Evaluator], splits: Splits, out: Path, suite: str | None
) -> list[Row]:
    """Run the evaluators whose row is missing in ``out`` and return all rows.

    Raises:
        UserError: The data set lacks what one of them needs.
    """
    for name, evaluator in evaluators.items():
        if lacks := lacking(evaluator, splits):
            raise UserError(f"{name}: {lacks}")
    made = encoder_identity(checkpoint)
    identities = {name: number_identity(made, name, evaluator, splits) for name, evaluator in evaluators.items()}
    ids = {name: identify(identity) for name, identity in identities.items()}
    paths = {name: row_path(out, checkpoint.method, name, ids[name]) for name in evaluators}
    with joined():
        if is_first():
            remove_leftovers(out / "rows")
        missing = first_says([name for name in evaluators if not (is_first() and is_measured(paths[name]))])
        for name in evaluators.keys() - missing if is_first() else ():  # of a process killed when the row was there
            _remove(EVALUATIONS / ids[name])
        if missing:
            fit, dev = hold_out(splits.train)
            data = Data(splits.train, fit, dev, splits.test)
            wanted = dict.fromkeys(pooling for name in missing for pooling in evaluators[name].poolings)
            encoder = FrozenEncoder(checkpoint.encoder, list(wanted), cache=FEATURES)
            _extract_together(encoder, data, list(wanted))
            said = warnings_of(checkpoint, splits) if is_first() else []
        for name in missing:
            encoder.folder, evaluator = EVALUATIONS / ids[name], evaluators[name]
            with _held(encoder.folder):
                if first_says(is_first() and is_measured(paths[name])):  # another run made it meanwhile
                    _remove(encoder.folder)
                    continue
                code = code_of(evaluator)
                result = _run(evaluator, encoder, data)
                if result is not None:
                    facts = (encoder.precision, device_name(encoder.device), code, said)
                    row = make_row(identities[name], suite, checkpoint, name, evaluator, data, result, *facts)
                    write_row(paths[name], row, result.correct, result.picture)
                    _remove(encoder.folder)
    return [Row.read(path) for path in paths.values()] if is_first() else []


def _run(evaluator: Evaluator, encoder: FrozenEncoder, data: Data) -> Result | None:
    """What is joint is done by all processes, anything else by the first, as if alone; the others get None."""
    if evaluator.joint:
        result = evaluator.run(encoder, data)
        return result if is_first() else None
    if not is_first():
        return None
    with one_process():
        result = evaluator.run(encoder, data)
        return (
            result if result.pooling else result.of_only_pooling(match_poolings(evaluator.poolings, encoder.poolings))
        )


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the folder of an evaluation against other runs; of several processes the first does it for all."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a folder that can't be written: only evaluators that train need it
            if is_first():
                held.enter_context(locked(folder))
                held.callback(remove_unused, folder)
        yield


def _remove(folder: Path) -> None:
    """Remove the folder of a finished evaluation."""
    shutil.rmtree(folder, ignore_errors=True)


def _extract_together(encoder: FrozenEncoder, data: Data, wanted: Sequence[str]) -> None:
    """Each of several processes extracts its share of the features, which all of them then read."""
    if process()[1] > 1:
        for images in (data.train, data.test) if wanted else ():  # fine-tuning alone wants none
            encoder.features(images, [p for p in wanted if p in encoder.poolings] or encoder.poolings[:1])

"""``ssl-bench embed``: the features of an encoder for the images of a data set, in a file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_bench.checkpoints.encoder_file import Checkpoint, load_encoder
from ssl_bench.checkpoints.model import is_model, load_model
from ssl_bench.data.datasets import load
from ssl_bench.data.own import DataPair
from ssl_bench.evaluations.evaluator import check_features
from ssl_bench.evaluations.feature_cache import ROOT as FEATURES
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.utils.files import write_atomic

SPLITS = ("train", "test")


def embed(
    encoder: str,
    data: str | DataPair,
    *,
    out: str | Path,
    pooling: str | None = None,
    split: str | None = None,
    backbone: str | None = None,
    skip_unreadable: bool = False,
) -> Path:
    """Write the features of a data set: the Python form of ``ssl-bench embed``.

    Args:
        encoder: An encoder file, or a model as of ``checkpoints.model.load_model``.
        data: As of ``data.datasets.load``.
        out: ``.parquet``: columns split, index (of the image in its split), label (name of its class) and features
            (float32, D of them); ``.npy``: float32 (N, D) alone, training images first.
        pooling: One that the encoder offers; its first when left out.
        split: train or test; both when left out.
        backbone: Which backbone plain timm weights are for.
        skip_unreadable: Leave unreadable images out.

    Returns:
        The file.

    Raises:
        UserError: The request is wrong; nothing has been encoded.
        RunError: The features can't be trusted, or the disk is full.
    """
    target = Path(out)
    if target.suffix not in (".parquet", ".npy"):
        raise UserError(f"--out {target.name}: features are written to a .parquet or a .npy file")
    if split not in (None, *SPLITS):
        raise unknown("split", split, SPLITS)
    loaded = load_model(encoder) if is_model(encoder) else load_encoder(encoder, backbone)
    frozen = FrozenEncoder(loaded.encoder, cache=FEATURES)
    pooling = pooling or frozen.poolings[0]
    if pooling not in frozen.poolings:
        raise unknown(f"pooling of {loaded.method}", pooling, frozen.poolings)
    splits = load(data, skip_unreadable=skip_unreadable)
    parts = [images for images in (splits.train, splits.test) if split in (None, images.split)]
    found = []
    for images in parts:
        features = frozen.features(images, [pooling])[pooling]
        check_features(features, pooling, images.split, len(images))
        found.append(features.numpy())
    buffer = io.BytesIO()
    if target.suffix == ".npy":
        np.save(buffer, np.concatenate(found))
    else:
        _write_table(parts, found, pooling, loaded, buffer)
    return write_atomic(target, buffer.getvalue())


def _write_table(parts: Any, found: list[Any], pooling: str, encoder: Checkpoint, buffer: io.BytesIO) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = {"encoder": encoder.method, "weights": encoder.sha256, "pooling": pooling, "data": parts[0].name}
    tables = []
    for images, features in zip(parts, found, strict=True):
        flat = pa.array(np.ascontiguousarray(features).reshape(-1))
        columns = {
            "split": [images.split] * len(images),
            "index": torch.arange(len(images)).numpy(),
            "label": [images.classes[label] for label in images.labels.tolist()],
            "features": pa.FixedSizeListArray.from_arrays(flat, features.shape[1]),
        }
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables).replace_schema_metadata(about), buffer)

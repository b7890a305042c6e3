"""The small file beside a row: what became of every test image, which is all that a paired test needs."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ssl_bench.metrics.ratios import contributions
from ssl_bench.results.rows.picture import read_picture
from ssl_bench.results.rows.row import Row
from ssl_bench.results.rows.schema import LARGEST
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import parse_json, read_regular

# (n,) bool, or float: the share of an image that is right, in [0, 1]; or (n, C, 2), what it adds to C ratios, of which
# the headline is the mean (`metrics.ratios`); or (n, 1), what it adds to a headline of another kind.
Predictions = np.ndarray[Any, np.dtype[Any]]
MOST_RATIOS = 4096  # classes; two float16 each
HEADER = 128  # bytes that ``np.save`` writes before the numbers of an array of few dimensions


def encode(correct: Predictions) -> bytes:
    """The content of the file: ``np.packbits`` of right or wrong, float16 of shares, as ``np.save`` writes them.

    Of ratios (n, C, 2), numerators and denominators are divided by the largest of all, which changes no ratio.

    Example:
        >>> decode(encode(np.array([True, False])), 2), decode(encode(np.array([0.5, 1.0])), 2)
        (array([ True, False]), array([0.5, 1. ]))
    """
    buffer = io.BytesIO()
    if correct.ndim == 3:
        correct = correct / max(1, correct.max())
    np.save(buffer, np.packbits(correct) if correct.dtype == np.bool_ else correct.astype(np.float16))
    return buffer.getvalue()


def decode(content: bytes, n: int) -> Predictions | None:
    """What `encode` was given, shares as float64; None for anything but the predictions of n images.

    Of ratios it is what each image adds (`contributions`), (n,) float64: their mean is that of the ratios. What images
    add to another headline is (n,) float64 of any size.
    """
    for dtype, size in ((np.uint8, -(-n // 8)), (np.float16, n)):
        if len(content) <= size:  # n comes from a file of others: nothing of its size is made for it
            continue
        header = _header(dtype, size)
        if content.startswith(header) and len(content) == len(header) + size * np.dtype(dtype).itemsize:
            found: Predictions = np.frombuffer(content, dtype, offset=len(header))
            if dtype is np.uint8:
                return np.unpackbits(found, count=n).astype(bool)
            return found.astype(np.float64) if ((found >= 0) & (found <= 1)).all() else None
    if n > 0 and len(content) == HEADER + 2 * n and content.startswith(_header(np.float16, (n, 1))):
        found = np.frombuffer(content, np.float16, offset=HEADER)
        return found.astype(np.float64) if np.isfinite(found).all() else None
    return _decode_ratios(content, n)


def _decode_ratios(content: bytes, n: int) -> Predictions | None:
    count, rest = divmod(len(content) - HEADER, 4 * max(1, n))
    if n < 1 or count < 1 or rest or not content.startswith(_header(np.float16, (n, count, 2))):
        return None
    parts = np.frombuffer(content, np.float16, offset=HEADER).astype(np.float64).reshape(n, count, 2)
    sound = (parts[..., 0] >= 0) & (parts[..., 0] <= parts[..., 1]) & (parts[..., 1] <= 1)
    return contributions(parts) if sound.all() else None


@cache
def _header(dtype: type[np.generic], size: int | tuple[int, ...]) -> bytes:
    """What ``np.save`` writes before ``size`` numbers. To compare it takes a tenth of the time of ``np.load``."""
    buffer = io.BytesIO()
    numbers = np.zeros(size, dtype)
    np.save(buffer, numbers)
    return buffer.getvalue()[: -numbers.nbytes]


def predictions_path(row: Row) -> Path:
    """The file beside a row; the name comes from a file of others and never leads out of the folder.

    Raises:
        UserError: It isn't a plain file name.
    """
    name = row["predictions"]
    if not isinstance(name, str) or name != row.path.with_suffix(".npy").name:
        raise UserError(f"{row.path}: its predictions are named {name!r}, not {row.path.with_suffix('.npy').name!r}")
    return row.path.with_suffix(".npy")


def read_predictions(row: Row) -> Predictions | None:
    """(n,) bool, or float64, in [0, 1] where the headline is a plain mean: the headline is 100 times its mean.

    None if the row has none or they are missing.

    Raises:
        UserError: A file that isn't the predictions of its row.
    """
    if row.values.get("predictions") is None:
        return None
    path, n = predictions_path(row), row["metrics"][row["headline"]]["n"]
    try:
        found = decode(read_regular(path, HEADER + 4 * MOST_RATIOS * int(n)), n)
    except FileNotFoundError:
        return None
    if found is None:
        raise UserError(
            f"{path} is not the predictions of {n} images: np.packbits, or float16 in [0, 1], as np.save writes"
        )
    return found


def is_measured(path: Path) -> bool:
    """Whether a row is there with its predictions and picture. What was cut off is named, and counts as missing.

    A row that was edited is there: whoever reads it refuses it.
    """
    if not path.exists():
        return False
    try:
        parse_json(read_regular(path, LARGEST))
        whole = _has_all(path)
    except (OSError, UserError, ValueError):
        whole = False
    if not whole:
        print(f"{path} or a file beside it is damaged: it is measured again", file=sys.stderr, flush=True)
    return whole


def _has_all(path: Path) -> bool:
    try:
        row = Row.read(path)
    except UserError:
        return True
    try:
        read_picture(row)
        return row["predictions"] is None or read_predictions(row) is not None
    except UserError:
        return False


def correctness(rows: Sequence[Row]) -> Predictions | None:
    """(seeds, n), each row's `read_predictions`; None where one has none, or another number of images.

    Raises:
        UserError: A file that isn't the predictions of its row.
    """
    predictions = []
    for row in rows:
        found = read_predictions(row)
        if found is None:
            return None
        predictions.append(found)
    return np.stack(predictions) if predictions and len({len(each) for each in predictions}) == 1 else None

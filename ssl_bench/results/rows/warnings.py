"""What makes a number doubtful, found when it is measured and kept in its row."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_bench.utils.errors import RunError
from ssl_bench.utils.files import content_hash, write_atomic
from ssl_bench.utils.flags import COLLAPSED

if TYPE_CHECKING:
    from ssl_bench.checkpoints.encoder_file import Checkpoint
    from ssl_bench.data.datasets import Splits


def warnings_of(checkpoint: Checkpoint, splits: Splits) -> list[str]:
    """The warnings that a row stores, also printed on standard error."""
    found = []
    if checkpoint.loaded < 100:
        found.append(f"weights loaded {checkpoint.loaded:.4g} %: the rest of the encoder is untrained")
    if COLLAPSED in checkpoint.about.get("flags", []):
        found.append("its features had collapsed at the end of the training: it has no rank")
    if (count := count_duplicates(splits)) is not None and count:
        are = "image is also a training image" if count == 1 else "images are also training images"
        found.append(f"{count:,} of {len(splits.test):,} test {are} of {splits.train.name}")
    for text in found:
        print(f"WARNING: {checkpoint.method} on {splits.test.name}: {text}", file=sys.stderr, flush=True)
    return found


def count_duplicates(splits: Splits, folder: Path = Path("runs/duplicates")) -> int | None:
    """``data.duplicates``, counted once for a pair of fingerprints and kept in a file.

    Returns:
        None for images that are decoded on access, which is for sets larger than the memory: to decode all of them
        would take as long as a pass of features.
    """
    from ssl_bench.data.datasets import duplicates  # here, so that whoever only reads rows doesn't wait for torch

    if splits.train.streamed or splits.test.streamed:
        return None
    path = folder / content_hash([splits.train.fingerprint, splits.test.fingerprint])[:16]
    with contextlib.suppress(OSError, ValueError):  # not counted yet, or the file was cut off
        return int(path.read_text())
    count = duplicates(splits.train, splits.test)
    with contextlib.suppress(RunError):  # a folder that can't be written: it is counted again the next time
        write_atomic(path, f"{count}\n")
    return count

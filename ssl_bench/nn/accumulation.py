"""Gradient accumulation: the batch of a step is computed in parts, and what happens once a step happens once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ssl_bench.utils.distributed import process

_part = (0, 1)


def batch_part() -> tuple[int, int]:
    """Number of the part that is computed, and how many there are: (0, 1) where a batch is computed at once."""
    return _part


def rows_of_batch() -> tuple[int, int]:
    """Which rows of the joint batch are computed: the number of a slice, and how many equal ones there are."""
    (rank, world), (number, count) = process(), batch_part()
    return rank * count + number, world * count


def parts_of(batch: dict[str, Any], count: int) -> Iterator[dict[str, Any]]:
    """Equal parts of a batch of the loader, row by row; what the caller computes meanwhile belongs to that part.

    Example:
        >>> import torch
        >>> [(part["index"].tolist(), batch_part()) for part in parts_of({"index": torch.arange(4)}, 2)], batch_part()
        ([([0, 1], (0, 2)), ([2, 3], (1, 2))], (0, 1))
    """
    global _part
    rows = len(batch["index"]) // count
    assert rows * count == len(batch["index"]), "the parts of a batch are equal"
    for number in range(count):
        mine = slice(number * rows, (number + 1) * rows)
        cut: dict[str, Any] = {key: value[mine] for key, value in batch.items() if isinstance(value, Tensor)}
        if "views" in batch:
            cut["views"] = [view[mine] for view in batch["views"]]
        _part = (number, count)
        try:
            yield {**batch, **cut}
        finally:
            _part = (0, 1)

"""Which of the training images have a label: drawn, the same number of each class, or named in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_bench.data.datasets import ImageSet
from ssl_bench.utils.errors import RunError, UserError


def balanced_subset(labels: Tensor, classes: int, fraction: float, seed: int) -> Tensor:
    """A draw of fraction x N images, as many of each class: (M,) int64, ascending.

    A class with fewer images gives all of them; every class gives one at least. A larger fraction of the same seed
    contains a smaller one.

    Args:
        labels: (N,) int64.
        classes: Number of classes.
        fraction: In (0, 1]; 1 takes all images, balanced or not.
        seed: Which images these are.

    Example:
        >>> labels = torch.tensor([0, 1] * 50)
        >>> torch.bincount(labels[balanced_subset(labels, 2, 0.1, seed=0)]).tolist()
        [5, 5]
    """
    if fraction == 1:
        return torch.arange(len(labels))
    each = max(1, round(fraction * len(labels) / classes))
    random, known = np.random.default_rng(seed), labels.numpy()
    members = [random.permutation(np.flatnonzero(known == label))[:each] for label in range(classes)]
    return torch.from_numpy(np.sort(np.concatenate(members)))


def listed(images: ImageSet, path: str) -> Tensor:
    """Indices (M,) int64 of the images of a split that a list names, by file name alone or by path in the data set.

    Raises:
        UserError: The file cannot be read, names no image of the split, or the images have no names.
    """
    try:
        names = {line.strip() for line in Path(path).read_text().splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {path}: {error}") from error
    key = getattr(images.images, "key", None)
    if key is None:
        raise UserError(
            f"the images of {images.name} are decoded in memory, without names: set SSL_BENCH_MEMORY=0 "
            "to read them from their files, or use fractions"
        )
    keys = [key(i) for i in range(len(images))]
    found = [i for i, name in enumerate(keys) if name in names or name.rpartition("/")[2] in names]
    if not found:
        raise UserError(f"no line of {path} names an image of {images.name} {images.split}")
    missing = len(set(images.labels.tolist())) - len(set(images.labels[found].tolist()))
    if missing and images.split == "train" and images.origin is None:
        raise RunError(f"{path} names no image of {missing} classes of {images.name}")
    return torch.tensor(found)

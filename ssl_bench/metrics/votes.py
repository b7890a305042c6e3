"""Votes of nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor


def votes(
    similarity: Tensor, neighbours: Tensor, num_classes: int, ks: Sequence[int], temperature: float
) -> Iterator[tuple[int, Tensor]]:
    """Each class's votes among the first k neighbours, for rising k.

    v_c = sum of exp(s_j / T) over the neighbours j of class c; here every row is divided by exp(s_1 / T), its largest
    weight, which changes no share v_c / sum(v) and keeps small temperatures from overflowing.

    Args:
        similarity: (N, K) float, largest first.
        neighbours: (N, K) int64, classes of the neighbours.
        num_classes: C, of the training set (a test set may lack some).
        ks: Rising, at most K.
        temperature: T.

    Yields:
        k and (N, C) float64 votes.

    Example:
        >>> import torch
        >>> similarity, neighbours = torch.tensor([[0.9, 0.8, 0.8]]), torch.tensor([[0, 1, 1]])
        >>> [(k, v.argmax(1).item()) for k, v in votes(similarity, neighbours, 2, ks=[1, 3], temperature=1.0)]
        [(1, 0), (3, 1)]
    """
    similarity = similarity.double()
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    total = weights.new_zeros(len(weights), num_classes)
    start = 0
    for k in ks:
        total = total.scatter_add(1, neighbours[:, start:k], weights[:, start:k])
        start = k
        yield k, total

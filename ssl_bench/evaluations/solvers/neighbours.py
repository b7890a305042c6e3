"""Exact nearest neighbours of features, and fast ones: in pieces, so that memory does not grow with the data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

QUERIES_PER_BLOCK = 2048  # with 200 neighbours of each, some 30 MB while pieces are merged
BANK_FLOATS = 5_000_000  # of a large bank that are normalised at once: 20 MB
SMALL_BANK_FLOATS = 2 * BANK_FLOATS  # normalised once, not again for each block of queries
HALF_MARGIN = 64  # candidates of a half-precision search beyond the neighbours wanted
GROUP = 8  # scores whose maximum is looked at first
GATHERED_FLOATS = 2**20  # of candidates that are compared again at once: 4 MiB


def normalize(features: Tensor) -> Tensor:
    """Rows divided by their length; rows of zeros stay zero. Lengths are summed in float64, so any scale works.

    Args:
        features: (N, D) float32.

    Returns:
        (N, D) float32.

    Example:
        >>> normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-30, 4e-30]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000],
                [0.6000, 0.8000]])
    """
    # A few rows at a time stay in cache as float64: five times faster than all at once.
    length = torch.cat([torch.linalg.vector_norm(rows.double(), dim=1, keepdim=True) for rows in features.split(128)])
    return features / length.float().masked_fill_(length == 0, 1)


def nearest(bank: Tensor, queries: Tensor, k: int, half: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """The k bank rows of largest cosine with each query, 2,048 queries at a time.

    The bank, which may be a memory-mapped file, is normalised `BANK_FLOATS` at a time and searched in those pieces (a
    small one at once): with k = 200, less than 100 MB are held beyond bank and queries, whatever their number.

    With `half`, `search_half` finds some more candidates than wanted, which are then compared by exact cosines; a
    quarter more memory is held.

    Args:
        bank: (M, D) float32, any length of rows.
        queries: (N, D) float32.
        k: Neighbours, at most M.
        half: As in `KNN`.

    Yields:
        For each `queries.split(QUERIES_PER_BLOCK)`: cosines (n, k) float32, largest first, and bank rows (n, k) int64;
        equal cosines in bank order.

    Example:
        >>> [index.tolist() for _, index in nearest(torch.eye(3), torch.tensor([[1.0, 9.0, 2.0]]), k=2)]
        [[[1, 2]]]
    """
    wanted = k
    find: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] = search
    if half:
        centre = normalize(bank[:: max(1, len(bank) // 10_000)]).mean(0)  # of a sample: it only guides the rounding
        wanted, find = min(k + HALF_MARGIN, len(bank)), partial(search_half, centre=centre)
    step = max(1, BANK_FLOATS // bank.shape[1] // 1024) * 1024  # FAISS works in blocks of 1,024: the same as in one
    if bank.numel() <= SMALL_BANK_FLOATS and not half:  # `half` holds another copy
        step = len(bank)
    whole = normalize(bank) if len(bank) <= step else None
    for block in queries.split(QUERIES_PER_BLOCK):
        block = normalize(block)
        found: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(bank), step):
            rows = normalize(bank[start : start + step]) if whole is None else whole
            similarity, index = find(rows, block, min(wanted, len(rows)))
            found = [_merge([*found, (similarity, index + start)], wanted)]
        yield _compare_again(bank, block, found[0][1], k) if half else _order_ties(*found[0])


def _merge(found: list[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """The k largest of several results of the same queries."""
    if len(found) == 1:
        return found[0]
    similarity, index = (torch.cat(part, dim=1) for part in zip(*found, strict=True))
    similarity, order = similarity.topk(min(k, similarity.shape[1]), dim=1)
    return similarity, index.gather(1, order)


def _compare_again(bank: Tensor, queries: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of the candidates `index` (N, K), by their cosines in float32."""
    found = []
    step = max(1, GATHERED_FLOATS // (index.shape[1] * bank.shape[1]))
    for block, near in zip(queries.split(step), index.sort(dim=1).values.split(step), strict=True):
        rows = normalize(bank[near.flatten()]).unflatten(0, near.shape)
        similarity, order = (rows @ block[:, :, None])[:, :, 0].sort(dim=1, descending=True, stable=True)
        found.append((similarity[:, :k], near.gather(1, order)[:, :k]))
    similarity, index = (torch.cat(part) for part in zip(*found, strict=True))
    return similarity, index


def search_half(bank: Tensor, queries: Tensor, k: int, centre: Tensor) -> tuple[Tensor, Tensor]:
    """As `search_torch`, in half precision, on a GPU if there is one; the products are not those of bank and queries.

    Cosines of real features crowd near 1, where bf16 has few numbers. With c the centre, the order of
    q b is that of q b - q c = (q - c)(b - c) + c (b - c): small numbers, which keep their digits.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cpu" else torch.float16
    parts = (part - centre for part in bank.split(1024))
    rows = torch.cat([torch.cat([part, (part @ centre)[:, None]], dim=1).to(device, dtype) for part in parts])
    asked = torch.nn.functional.pad(queries - centre, (0, 1), value=1.0).to(device, dtype)
    found = [_topk(block @ rows.T, k) for block in asked.split(256)]
    return torch.cat([s for s, _ in found]).cpu(), torch.cat([i for _, i in found]).cpu()


def _topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`scores.topk(k, dim=1)`, faster on long rows: the k largest lie in the k groups of largest maximum."""
    width = scores.shape[1]
    if width % GROUP or width < 2 * GROUP * k:
        values, index = scores.topk(k, dim=1)
        return values, index
    groups = width // GROUP  # member j of group g is column j * groups + g
    best = scores.unflatten(1, (GROUP, groups)).amax(1).topk(k, dim=1, sorted=False).indices
    members = (best[:, None] + groups * torch.arange(GROUP, device=scores.device)[:, None]).flatten(1)
    values, order = scores.gather(1, members).topk(k, dim=1)
    return values, members.gather(1, order)


def search(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k bank rows of largest inner product with each query: an exact FAISS search, on a GPU if FAISS sees one.

    Without FAISS, `search_torch` does the same. Memory beyond the result is about 20 MB: 2,048 queries at a time and no
    copy of the bank. Repeats are bit-identical for one number of threads; another number may move products by rounding.

    Args:
        bank: (M, D) float32.
        queries: (N, D) float32.
        k: Neighbours, at most M.

    Returns:
        Inner products (N, k) float32, largest first, and bank rows (N, k) int64; equal products in bank order.

    Example:
        >>> search(torch.eye(3), torch.tensor([[0.1, 0.9, 0.2]]), k=2)
        (tensor([[0.9000, 0.2000]]), tensor([[1, 2]]))
    """
    try:
        import faiss
    except ImportError:
        return search_torch(bank, queries, k)
    rows, blocks = bank.contiguous().numpy(), [block.contiguous().numpy() for block in queries.split(QUERIES_PER_BLOCK)]
    inner = faiss.METRIC_INNER_PRODUCT
    if faiss.get_num_gpus():
        index = faiss.GpuIndexFlatIP(_gpu_resources(), rows.shape[1])
        index.add(rows)
        found = [index.search(block, k) for block in blocks]
    else:
        faiss.omp_set_num_threads(torch.get_num_threads())
        found = [faiss.knn(block, rows, k, metric=inner) for block in blocks]
    similarity = torch.from_numpy(np.concatenate([s for s, _ in found]))
    return _order_ties(similarity, torch.from_numpy(np.concatenate([i for _, i in found])))


@cache
def _gpu_resources() -> Any:
    """FAISS's own memory on the GPU, hundreds of megabytes: taken once."""
    import faiss

    return faiss.StandardGpuResources()


def search_torch(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same as `search` in plain torch, 256 queries at a time: 1.5 to 2 times slower."""
    found = [(block @ bank.T).topk(k, dim=1) for block in queries.split(256)]
    return _order_ties(torch.cat([s for s, _ in found]), torch.cat([i for _, i in found]))


def _order_ties(similarity: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Equal similarities of a row put in the order of the bank, so that votes do not depend on the search."""
    tied = (similarity[:, 1:] == similarity[:, :-1]).any(dim=1)
    if tied.any():
        by_index, order = index[tied].sort(dim=1)
        values, again = similarity[tied].gather(1, order).sort(dim=1, descending=True, stable=True)
        similarity[tied], index[tied] = values, by_index.gather(1, again)
    return similarity, index

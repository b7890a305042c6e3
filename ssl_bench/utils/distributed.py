"""Several processes: each holds its rows of the joint batch, in rank order."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from ssl_bench.utils.errors import UserError

T = TypeVar("T")
WAIT = datetime.timedelta(days=1)  # for the first process, which solves heads alone
_alone = False


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """What is computed within is this process's own: ``process`` says that there is no other."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def process() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    if _alone or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """The processes that ``torchrun`` has started, as one group; in a single process, nothing."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or torch.distributed.is_initialized():
        yield
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=WAIT)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


class Sum(torch.autograd.Function):
    """Sum of a tensor over the processes; its gradient is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The same sum in every process."""
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Every process used the sum."""
        return Sum.forward(ctx, grad.contiguous())


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """(N, D) of every process, concatenated in rank order, without gradient; ``x`` itself in a single process."""
    _, world = process()
    if world == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world)]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """``gather``; the gradient of a process's rows is the sum of those that all processes have for them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The same rows in every process."""
        return gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Every process used the rows; its own are kept."""
        rank, world = process()
        return Sum.forward(ctx, grad.contiguous()).chunk(world)[rank]


def gather_with_gradient(x: Tensor) -> Tensor:
    """(N, D) of every process, concatenated in rank order; gradients come back from the losses of all processes.

    Gradients of weights are then averaged over the processes. So they are those of the mean of the processes' losses,
    be these the same or each its own part.
    """
    return x if process()[1] == 1 else _Gather.apply(x)


@torch.no_grad()
def all_mean(x: Tensor) -> Tensor:
    """Mean of a tensor over the processes, without gradient."""
    _, world = process()
    if world == 1:
        return x.detach()
    x = x.detach().clone()
    torch.distributed.all_reduce(x)
    return x / world


def first_says(value: T) -> T:
    """The value that the first process has, in every process."""
    if process()[1] == 1:
        return value
    said = [value]
    torch.distributed.broadcast_object_list(said)
    return said[0]


def share(count: int, batch_size: int) -> tuple[int, int]:
    """The items [start, end) of this process: whole batches but for the last, so that shares don't move a bit."""
    rank, world = process()
    batches = -(-count // batch_size)
    start, end = (min(count, -(-batches * r // world) * batch_size) for r in (rank, rank + 1))
    return start, end


def part(batch_size: int) -> range:
    """Which items of a joint batch this process works on: an equal part of it.

    Raises:
        UserError: The batch has no equal parts.

    Example:
        >>> part(4)
        range(0, 4)
    """
    rank, world = process()
    if batch_size % world:
        raise UserError(f"batch_size {batch_size} can't be shared evenly by {world} processes")
    each = batch_size // world
    return range(rank * each, (rank + 1) * each)


@torch.no_grad()
def average_gradients(weights: Iterable[Tensor]) -> None:
    """Put the mean over the processes in the place of each gradient; weights without one count as having zeros."""
    if process()[1] > 1:
        for weight in weights:
            if weight.requires_grad:
                weight.grad = all_mean(torch.zeros_like(weight) if weight.grad is None else weight.grad)


def is_first() -> bool:
    """Whether this is the only process of a run, or the first that `torchrun` has started: the one that writes."""
    return os.environ.get("RANK", "0") == "0"

"""Training batches as a pure function of (seed, step): any step can be rebuilt, by any number of processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ssl_bench.data.datasets import ImageSet
from ssl_bench.data.images import unchanged
from ssl_bench.data.reading import processes_here, processors
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.utils.stopwatch import part
from ssl_bench.views.make import view_images
from ssl_bench.views.view import View, augmented

MOST_WORKERS = 16
MOST_AHEAD = 2**33  # bytes of views that workers may hold ready: two whole batches of each could be 300 GB
PREFETCH = 2  # batches of each worker
AT_ONCE = 8  # decoded images that a worker holds


class Loader:
    """The batches of a training run, for Lightning to iterate as one long epoch.

    Every epoch is a permutation of the images drawn from (seed, epoch); the images that do not fill a last batch are
    left out of it, or are a smaller batch. Rank r of ``world`` gets the r-th contiguous slice of each global batch;
    where a batch can't be shared evenly, and that is allowed, every rank gets all of it, and it says so ("whole").
    Iterating continues at the next step that was not delivered, so that ``load_state_dict`` resumes a run at the exact
    image.

    Images of one size come as they are, for the training device to cut all views of a batch at once. Worker processes
    read them where they aren't held decoded, which changes no pixel of a view::

        {"images": uint8 (b, 3, H, W), "labels": int64 (b,), "index": int64 (b,), "step": int}

    Images that differ in size have their views cut one by one in worker processes, and so have all images when a view
    has an `augment`::

        {"views": list of float32 (b, 3, size, size), "labels": ..., "index": ..., "step": ...}

    Their randomness comes from (seed, step, position in the global batch): neither the number of workers nor the number
    of ranks changes a pixel.

    Args:
        images: The training images.
        views: The crops to cut; used where workers cut them. None for images of one size.
        batch_size: Images per step, over all ranks.
        steps: Length of the run.
        seed: 0 or more; decides the order of the images and the views that workers cut.
        rank: Which of the ``world`` processes this is.
        world: Number of training processes.
        workers: Worker processes that cut views; 0 cuts them in this process. Default: one per processor, at most 16,
            shared among the ranks.
        device: Keep decoded images on this CUDA device, if they take at most half of its free memory.
        drop_last: Leave out the images that do not fill a last batch.
        uneven: Allow batches that ``world`` does not divide.

    Raises:
        UserError: There are fewer images than ``batch_size``, or ``world`` does not divide it, and that isn't allowed.
    """

    def __init__(
        self,
        images: ImageSet,
        views: Sequence[View] | None,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int | None = None,
        device: torch.device | str | None = None,
        drop_last: bool = True,
        uneven: bool = False,
    ) -> None:
        if batch_size < 1 or len(images) < batch_size:
            raise UserError(
                f"batch_size {batch_size} does not fit {images.name} with {len(images)} {images.split} images: "
                f"choose 1 to {len(images)}"
            )
        if batch_size % world and not uneven:
            raise UserError(
                f"batch_size {batch_size} can't be shared by {world} processes: choose a multiple of {world}"
            )
        if seed < 0:
            raise UserError(f"seed {seed} is negative: choose 0 or more")
        assert images.sides is not None or views is not None, "images that differ in size need views"
        assert drop_last or uneven or world == 1, "a smaller last batch can't always be shared evenly"
        self.images, self.views = images, views
        self.batch_size, self.steps, self.seed, self.rank, self.world = batch_size, steps, seed, rank, world
        self.drop_last = drop_last
        self.workers = _default_workers(world) if workers is None else workers
        self._cuts = views if images.sides is None or augmented(views or ()) else None  # by workers
        self._pixels = None if self._cuts else images.decoded
        self._labels = images.labels
        if self._pixels is not None and device is not None and _fits(self._pixels, torch.device(device)):
            self._pixels, self._labels = self._pixels.to(device), self._labels.to(device)
        self._next = 0

    def __len__(self) -> int:
        return self.steps

    def state_dict(self) -> dict[str, int]:
        """The next step to deliver."""
        return {"step": self._next}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue at ``state["step"]``."""
        self._next = int(state["step"])

    def indices(self, step: int) -> Tensor:
        """Which images this rank gets at ``step``, int64 (batch_size / world,), or others where that isn't whole."""
        epoch, batch = divmod(step, batches(len(self.images), self.batch_size, drop_last=self.drop_last))
        start = batch * self.batch_size
        whole = _order(len(self.images), self.seed, epoch)[start : start + self.batch_size]
        if not self._whole(step):
            share = len(whole) // self.world
            whole = whole[self.rank * share : (self.rank + 1) * share]
        return torch.from_numpy(whole)

    def _whole(self, step: int) -> bool:
        """Whether every one of several ranks gets all images of the step."""
        batch = step % batches(len(self.images), self.batch_size, drop_last=self.drop_last)
        count = min(self.batch_size, len(self.images) - batch * self.batch_size)
        return count % self.world > 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        left, following = self._read() if self._pixels is None else self._gather(self._pixels), part("data")(next)
        while batch := following(left, None):
            # Before the batch is handed out: a checkpoint made while it is in use says that the next one is due.
            self._next = batch["step"] + 1
            yield {**batch, "whole": True} if self._whole(batch["step"]) else batch

    def _gather(self, pixels: Tensor) -> Iterator[dict[str, Any]]:
        pin = torch.cuda.is_available()
        for step in range(self._next, self.steps):
            index = self.indices(step)
            if pixels.device.type == "cpu":
                images = torch.empty(len(index), *pixels.shape[1:], dtype=torch.uint8, pin_memory=pin)
                # NumPy gathers rows on one thread: no slower than torch, and far faster on a busy machine.
                pixels.numpy().take(index.numpy(), axis=0, out=images.numpy(), mode="clip")
            else:
                images = pixels[index.to(pixels.device)]
            yield {"images": images, "labels": self._labels[index.to(pixels.device)], "index": index, "step": step}

    def _read(self) -> Iterator[dict[str, Any]]:
        """Batches of views, or of images of one size, from worker processes."""
        # Workers are forked where that is safe, so that they share the decoded images instead of copying them.
        fork = self.workers > 0 and sys.platform == "linux"
        pieces = DataLoader(
            _Reader(self.images, self._cuts, self.seed),
            batch_sampler=self._jobs(),
            num_workers=self.workers,
            prefetch_factor=PREFETCH if self.workers else None,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context="fork" if fork else None,
        )
        try:
            yield from _joined(pieces, lambda step: len(self.indices(step)))
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RunError(
                f"a loader worker ended: {str(error).splitlines()[0]} (fewer workers need less memory)"
            ) from error

    def _jobs(self) -> Iterator[list[tuple[int, int, int]]]:
        """(step, position in the global batch, index) of each image of each step that is left, a piece at a time."""
        height, width = self.images.sides or (1, 1)
        views = self._cuts or ()
        each = sum(4 * 3 * view.count * view.sides[0] * view.sides[1] for view in views) or 3 * height * width  # bytes
        piece = max(1, MOST_AHEAD // (each * PREFETCH * max(1, self.workers)))
        for step in range(self._next, self.steps):
            index = self.indices(step).tolist()
            first = 0 if self._whole(step) else self.rank * len(index)
            jobs = [(step, first + i, image) for i, image in enumerate(index)]
            yield from (jobs[start : start + piece] for start in range(0, len(jobs), piece))


def batches(images: int, batch_size: int, *, drop_last: bool) -> int:
    """Batches in an epoch.

    Example:
        >>> batches(9, 4, drop_last=True), batches(9, 4, drop_last=False)
        (2, 3)
    """
    return images // batch_size if drop_last else -(-images // batch_size)


def _joined(pieces: Iterable[dict[str, Any] | Exception], images_of: Callable[[int], int]) -> Iterator[dict[str, Any]]:
    """Whole batches from the pieces of them that workers cut; ``images_of`` a step says how many images it has."""
    at = 0
    whole: dict[str, Any] = {}
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        n, count = len(piece["index"]), images_of(piece["step"])
        if n == count:
            yield piece
            continue
        if at == 0:
            whole = {key: _larger(value, count) for key, value in piece.items()}
        for into, rows in zip(_tensors(whole), _tensors(piece), strict=True):
            into[at : at + n] = rows
        at = (at + n) % count
        if at == 0:
            yield whole
            whole = {}  # its memory is free before the next is taken


def _larger(value: Any, count: int) -> Any:
    """A tensor like ``value``, or a list of such, for ``count`` images; any other value as it is."""
    if isinstance(value, list):
        return [_larger(view, count) for view in value]
    if not isinstance(value, Tensor):
        return value
    pin = torch.cuda.is_available() and value.ndim > 1
    return torch.empty(count, *value.shape[1:], dtype=value.dtype, pin_memory=pin)


def _tensors(batch: dict[str, Any]) -> list[Tensor]:
    """All tensors of a batch, those of its views too."""
    return [*batch.get("views", []), *(value for value in batch.values() if isinstance(value, Tensor))]


class _Reader(Dataset[Any]):
    """Reads images and cuts their views, if any are given; runs in the worker processes."""

    def __init__(self, images: ImageSet, views: Sequence[View] | None, seed: int) -> None:
        self.images, self.views, self.seed = images, views, seed

    def __getitems__(self, jobs: Sequence[tuple[int, int, int]]) -> Sequence[dict[str, Any] | Exception]:
        try:
            parts = [self.read(jobs[start : start + AT_ONCE]) for start in range(0, len(jobs), AT_ONCE)]
        except (UserError, RunError) as error:
            return [error]  # raised in a worker, it would reach the user as a traceback
        found = [image for part in parts for image in part]
        about = [{"labels": self.images.labels[index], "index": index, "step": step} for step, _, index in jobs]
        return [{**image, **its} for image, its in zip(found, about, strict=True)]

    def read(self, jobs: Sequence[tuple[int, int, int]]) -> list[dict[str, Any]]:
        """The pixels or the views of some images."""
        if self.views is None:
            assert self.images.sides is not None
            return [{"images": unchanged(self.images.images, index, self.images.sides)} for _, _, index in jobs]
        images = [self.images.images[index] for _, _, index in jobs]
        seeds = [np.random.SeedSequence((self.seed, *job[:2])).generate_state(1, np.uint64) for job in jobs]
        generators = [torch.Generator().manual_seed(int(seed[0])) for seed in seeds]
        return [{"views": views} for views in view_images(images, self.views, generators)]


def _collate(items: list[Any]) -> dict[str, Any] | Exception:
    if isinstance(items[0], Exception):
        return items[0]
    batch: dict[str, Any] = default_collate(items)
    return {**batch, "step": int(batch["step"][0])}


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of ``count`` images in an epoch, int64 (count,)."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def _default_workers(world: int) -> int:
    return min(MOST_WORKERS, max(1, processors() // processes_here(world)))


def _fits(pixels: Tensor, device: torch.device) -> bool:
    return device.type == "cuda" and pixels.nbytes <= torch.cuda.mem_get_info(device)[0] // 2

"""Draw the views of a batch on its device, or of a few images in a worker process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ssl_bench.views.execution import (
    CropParameters,
    as_numbers,
    draw,
    groups,
    on_host,
    parameters,
    run,
    seeded,
    view_one,
)
from ssl_bench.views.view import View, augmented

LARGE = 96  # pixels of the longer side from which images on CPU are faster one by one


def make_views(
    images: Tensor, views: Sequence[View], generator: torch.Generator, process: tuple[int, int] = (0, 1)
) -> list[Tensor]:
    """Draw every view of every image of a batch, each crop with random parameters of its own.

    Values are rounded to whole levels where PIL rounds them, except by hue and blur. Nothing waits for a CUDA device.

    Args:
        images: uint8 (B, 3, H, W).
        views: The crops to draw.
        generator: On the device of `images`; the same state gives the same views.
        process: Rank and number of processes: draw for the joint batch and take this process's rows.

    Returns:
        One float32 (B, 3, H', W') per crop, normalised: the `count` crops of the first view, then of the next.
    """
    assert images.dtype == torch.uint8
    assert images.ndim == 4
    batch = len(images)
    crops = [view for view in views for _ in range(view.count)]
    rank, world = process
    params = parameters(tuple(crops), draw(crops, batch * world, generator), images.shape[2], images.shape[3])
    if world > 1:
        params = CropParameters(*(field[:, rank * batch : (rank + 1) * batch] for field in params))
    if augmented(crops) or (on_host(images) and max(images.shape[2:]) > LARGE):
        with _for_augment(crops, generator):
            return [
                torch.stack([view_one(*job) for job in zip(images, [view] * batch, rows, strict=True)])
                for view, rows in zip(crops, as_numbers(params), strict=True)
            ]
    outputs: dict[int, Tensor] = {}
    for group in groups(crops):
        joined = CropParameters(*(torch.cat([field[crop] for crop in group]) for field in params))
        outputs.update(zip(group, run(images, [crops[crop] for crop in group], joined), strict=True))
    return [outputs[crop] for crop in range(len(crops))]


def view_images(
    images: Sequence[Tensor], views: Sequence[View], generators: Sequence[torch.Generator]
) -> list[list[Tensor]]:
    """Draw the views of images of any sizes; for the worker processes of a loader.

    Several at once take less time than one after the other: what is drawn means for all of them.

    Args:
        images: uint8 (3, H, W) each, on CPU.
        views: The crops to draw.
        generators: Each image's own, on CPU.

    Returns:
        For each image one float32 (3, H', W') per crop, in the order of `make_views`.
    """
    assert all(image.dtype == torch.uint8 and image.ndim == 3 for image in images)
    crops = tuple(view for view in views for _ in range(view.count))
    heights, widths = torch.tensor([image.shape[1:] for image in images]).T
    numbers = torch.cat([draw(crops, 1, generator) for generator in generators], dim=2)
    drawn = zip(*as_numbers(parameters(crops, numbers, heights, widths)), strict=True)  # image by image
    found = []
    for image, rows, generator in zip(images, drawn, generators, strict=True):
        with _for_augment(crops, generator):
            found.append([view_one(image, view, row) for view, row in zip(crops, rows, strict=True)])
    return found


def _for_augment(views: Sequence[View], generator: torch.Generator) -> AbstractContextManager[None]:
    """The global generators seeded by one more draw from `generator`, which only views with an `augment` take."""
    if not augmented(views):
        return nullcontext()
    return seeded(int(torch.randint(2**32, (), generator=generator, device=generator.device)))

"""Feature maps of whole images and the masks beside them: what every dense evaluation looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.data.datasets import ImageSet
from ssl_bench.data.reading import decoders
from ssl_bench.evaluations.evaluator import name_of
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.utils.progress import progress
from ssl_bench.views.view import FILTERS

T = TypeVar("T")

RAW_PATCH = 8  # pixels of a side of the patches that stand for the tokens of raw pixels
PIXELS_PER_BATCH = 2**22  # of images encoded at once: 16 of 512 x 512
LARGE = 512  # pixels of a side to which images that differ in size are resized (hummingbird, DINOv2)


class Mapped(Protocol):
    """Whatever gives maps of images."""

    def map_of(self, images: Tensor, blocks: Sequence[int] = ()) -> Tensor:
        """See `Encoder.map_of`."""


def feature_map(network: nn.Module, images: Tensor, blocks: Sequence[int] = (), cls: bool = False) -> Tensor:
    """The tokens of images as a map.

    Args:
        network: A ``Backbone``.
        images: (B, 3, H, W) float, normalised.
        blocks: After which blocks (1 to ``depth``, rising), resized to the first and concatenated, instead of the
            tokens that come out.
        cls: Put the class token (without one the mean of the tokens) of the image or tile behind each token that comes
            out; raw pixels have none.

    Returns:
        (B, D, rows, columns).

    Raises:
        UserError: The network has no map, or images don't consist of tiles of its size.
    """
    maps = feature_maps(network, images, sorted(blocks), cls)
    shape = maps[0].shape[-2:]
    return torch.cat([maps[0], *(F.interpolate(m, shape, mode="bilinear") for m in maps[1:])], dim=1)


def feature_maps(network: nn.Module, images: Tensor, blocks: Sequence[int] = (), cls: bool = False) -> list[Tensor]:
    """The map after each of several blocks, or that of the tokens that come out.

    Images whose sides are no multiples of a token's are padded with zeros at both sides, the larger half at the end
    (DINOv2's `CenterPadding`). A backbone that takes one size alone sees larger images in tiles of that size. Raw
    pixels come in patches of `RAW_PATCH`.

    Returns:
        (B, D_i, rows_i, columns_i) each; see `feature_map` for the rest.
    """
    backbone: Any = network
    if not getattr(network, "has_map", False):
        raise UserError(f"{name_of(network)} gives one vector an image, and no map of tokens")
    own, size = backbone.image_size, (images.shape[-2], images.shape[-1])
    if not backbone.multi_crop and size != own:
        if size[0] % own[0] or size[1] % own[1]:
            raise UserError(
                f"{backbone.name} takes images of {own[0]} x {own[1]} pixels alone: {size[0]} x {size[1]} are no tiles "
                "of that size"
            )
        return _tiled(network, images, blocks, cls)
    side = backbone.cell if backbone.can_train else RAW_PATCH
    missing = [-length % side for length in size]
    images = F.pad(images, [each for m in reversed(missing) for each in (m // 2, m - m // 2)])
    if not backbone.can_train:
        return [F.pixel_unshuffle(images, RAW_PATCH)]
    if blocks:
        maps: list[Tensor] = backbone.feature_maps(images, blocks)
        return maps
    pooled, tokens = backbone(images)
    grid = backbone.grid_of((images.shape[-2], images.shape[-1]))
    if grid[0] * grid[1] != tokens.shape[1]:
        raise UserError(f"{backbone.name} gives {tokens.shape[1]} tokens, which are no map of {grid[0]} x {grid[1]}")
    if cls:
        tokens = torch.cat([tokens, pooled[:, None].expand_as(tokens)], 2)
    return [tokens.transpose(1, 2).unflatten(2, grid)]


def _tiled(network: nn.Module, images: Tensor, blocks: Sequence[int], cls: bool) -> list[Tensor]:
    """Each tile of the backbone's own size by itself, the maps set side by side."""
    height, width = network.image_size  # type: ignore[misc]
    tiles = images.unflatten(2, (-1, height)).unflatten(4, (-1, width)).permute(0, 2, 4, 1, 3, 5)
    maps = feature_maps(network, tiles.flatten(0, 2), blocks, cls)
    found = [each.unflatten(0, tiles.shape[:3]).permute(0, 3, 1, 4, 2, 5) for each in maps]
    return [each.flatten(4, 5).flatten(2, 3) for each in found]


def common_size(images: ImageSet, large: int = LARGE) -> tuple[int, int]:
    """The size at which images are looked at: their own if they share one, otherwise a square of `large` pixels.

    Example:
        >>> pixels = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
        >>> common_size(ImageSet("one", "train", torch.zeros(1, dtype=torch.int64), (), "00" * 32, pixels))
        (64, 96)
    """
    return images.sides or (large, large)


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (..., 3, H, W) to (..., 3, *size), bicubic with antialias, whatever their shape; of that size, as it is."""
    return image if image.shape[-2:] == size else tv.resize(image, list(size), FILTERS["bicubic"], antialias=True)


def resized_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (H, W) to `size` without any number that wasn't there."""
    if mask.shape == size:
        return mask
    return F.interpolate(mask[None, None], size, mode="nearest-exact")[0, 0]


def maps_of(
    encoder: Mapped, images: ImageSet, size: tuple[int, int], blocks: Sequence[int] = ()
) -> Iterator[tuple[range, Tensor]]:
    """The feature maps of a split, a batch of images at a time, in order.

    Args:
        encoder: Usually an `Encoder`.
        images: Any.
        size: Height and width to which they are resized.
        blocks: As of `feature_map`.

    Yields:
        Which images, and their maps (B, D, rows, columns) float32.

    Raises:
        RunError: Maps that hold NaN or infinity, or an image that can't be read any more.
    """
    step = max(1, PIXELS_PER_BATCH // (size[0] * size[1]))
    batches = [range(start, min(start + step, len(images))) for start in range(0, len(images), step)]
    for batch in progress(iter(batches), f"maps of {images.name} {images.split}", len(batches)):
        if images.decoded is not None:
            pixels = resized(images.decoded[batch.start : batch.stop], size)
        else:
            pixels = torch.stack(in_threads(lambda i: resized(images.images[i], size), batch))
        found = encoder.map_of(pixels, blocks)
        if not torch.isfinite(found).all():
            raise RunError(f"feature maps of the {images.split} split contain NaN or infinity")
        yield batch, found


def in_threads(function: Callable[[int], T], indices: Sequence[int]) -> list[T]:
    """`function` of each index, in order; decoding and resizing run side by side."""
    with ThreadPoolExecutor(decoders()) as pool:
        return list(pool.map(function, indices))


def patch_classes(mask: Tensor, grid: tuple[int, int], classes: int, ignore_as: int | None = None) -> Tensor:
    """Of each patch of an image the share of its pixels that are of each class.

    Args:
        mask: uint8 (H, W), padded to a multiple of `grid` with pixels that have no class, as `feature_map` pads images.
        grid: Rows and columns of patches.
        classes: C.
        ignore_as: The class of pixels without one; None leaves them out, so that shares sum to less than 1.

    Returns:
        (rows * columns, C) float32.

    Example:
        >>> patch_classes(torch.tensor([[0, 0, 1, 1], [0, 255, 1, 0]], dtype=torch.uint8), (1, 2), classes=2).tolist()
        [[0.75, 0.0], [0.25, 0.75]]
    """
    missing = [-length % cells for length, cells in zip(mask.shape, grid, strict=True)]
    mask = F.pad(mask, [each for m in reversed(missing) for each in (m // 2, m - m // 2)], value=255)
    height, width = mask.shape[0] // grid[0], mask.shape[1] // grid[1]
    cells = mask.view(grid[0], height, grid[1], width).transpose(1, 2).reshape(grid[0] * grid[1], -1).long()
    cells = torch.where(cells < classes, cells, classes if ignore_as is None else ignore_as)
    counts = torch.zeros(len(cells), classes + 1)
    return counts.scatter_add_(1, cells, torch.ones_like(cells, dtype=torch.float32))[:, :classes] / cells.shape[1]


def shuffled_batches(count: int, size: int, steps: int, random: np.random.Generator) -> Iterator[list[int]]:
    """Indices of images in passes of a new order each; a batch may end one pass and begin the next.

    Args:
        count: Images.
        size: Of a batch.
        steps: Batches.
        random: Draws an order when the one before is used up.

    Example:
        >>> [len(set(batch)) for batch in shuffled_batches(4, 2, 3, np.random.default_rng(0))]
        [2, 2, 2]
    """
    waiting: list[int] = []
    for _ in range(steps):
        while len(waiting) < size:
            waiting += random.permutation(count).tolist()
        yield waiting[:size]
        waiting = waiting[size:]

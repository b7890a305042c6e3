"""What is known of images beyond a label each: the class of every pixel, objects and their boxes, clips."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from ssl_bench.data.images import Files, open_image

IGNORE = 255  # in a mask: a pixel that has no class and counts nowhere
HELD = (
    "masks",
    "instances",
    "clips",
    "annotations",
    "depths",
    "searches",
)  # attributes of `Targets` with a value for each image


class Objects(NamedTuple):
    """The objects of one image."""

    boxes: Tensor  # (K, 4) float32: left, upper, right and lower edge, pixels
    labels: Tensor  # (K,) int64, of the names of `Targets`; 0 is the background
    masks: Tensor  # (K, H, W) bool
    crowd: Tensor  # (K,) bool: one that stands for many, which nobody has to find
    areas: Tensor | None = None  # (K,) float64, pixels, where the ground truth states them


class Search(NamedTuple):
    """What a query should find: places among the images that are searched, int64 (K,) each."""

    easy: np.ndarray
    hard: np.ndarray
    junk: np.ndarray  # neither right nor wrong


class Searches(list[Search]):
    """The search of each of several queries."""

    @classmethod
    def nothing(cls, count: int) -> Searches:
        """Of so many images that are searched and search for nothing."""
        return cls([Search(*(np.zeros(0, np.int64) for _ in range(3)))] * count)

    def take(self, indices: np.ndarray) -> Searches:
        """Those of some queries (K,) int64."""
        return Searches(self[i] for i in indices.tolist())

    def digest(self) -> str:
        """64 hex digits that change with any place."""
        found = hashlib.sha256()
        for places in (places for search in self for places in search):
            found.update(len(places).to_bytes(8, "little") + places.astype("<i8").tobytes())
        return found.hexdigest()


@dataclass(frozen=True, eq=False)
class Targets:
    """Maps of the images of a split, and the clips that they are frames of; None where there are none.

    Attributes:
        classes: Names of the classes in `masks`.
        masks: `mask(i)`, uint8 (H_i, W_i), is the class of every pixel of image i, or IGNORE.
        instances: `instance(i)`, uint8 (H_i, W_i), is the number of the object seen at every pixel, counted from 1, and
            0 where there is none. An object keeps its number through a clip.
        clips: int64 (N,), the clip of each frame; the frames of a clip stand together and in order.
        annotations: `annotations[i]` are the objects of image i, where they aren't the `instances`: they may overlap.
        depths: `depth(i)`, float32 (H_i, W_i), is how far away every pixel is, in metres; 0 where nobody knows.
        searches: What each image, as a query, should find among the training images.
    """

    classes: tuple[str, ...] = ()
    masks: Tensor | Sequence[Tensor] | None = None
    instances: Tensor | Sequence[Tensor] | None = None
    clips: Tensor | None = None
    annotations: Sequence[Objects] | None = None
    depths: Tensor | Sequence[Tensor] | None = None
    searches: Searches | None = None

    @property
    def kinds(self) -> frozenset[str]:
        """What there is, in the words of ``Evaluator.needs``: "objects" have boxes and classes."""
        found = {name for name in HELD if getattr(self, name) is not None}
        if "annotations" in found or {"masks", "instances"} <= found:
            found.add("objects")
        if found & {"annotations", "masks"}:
            found.add("label sets")
        return frozenset(found - {"annotations"})

    def mask(self, index: int) -> Tensor:
        """The class mask of an image."""
        assert self.masks is not None
        return self.masks[index].squeeze(0)  # maps from files have a channel

    def instance(self, index: int) -> Tensor:
        """The objects of an image."""
        assert self.instances is not None
        return self.instances[index].squeeze(0)

    def depth(self, index: int) -> Tensor:
        """Metres (H, W) float32 of every pixel of an image; 0 where it isn't known."""
        assert self.depths is not None
        return self.depths[index].squeeze(0)

    def label_set(self, index: int) -> np.ndarray:
        """Which classes an image shows: (C,) bool."""
        found = np.zeros(len(self.classes), dtype=bool)
        seen = self.mask(index).unique() if self.annotations is None else self.annotations[index].labels
        found[[label for label in seen.tolist() if label < len(found)]] = True
        return found

    def objects(self, index: int) -> Objects:
        """The objects of an image."""
        if self.annotations is not None:
            return self.annotations[index]
        instances = self.instance(index)
        places, labels = boxes(instances, self.mask(index))
        numbers = instances.unique()
        masks = instances == numbers[numbers > 0][:, None, None]
        edges = places + torch.tensor([0.0, 0.0, 1.0, 1.0])
        return Objects(edges, labels, masks, torch.zeros(len(labels), dtype=torch.bool))

    def take(self, indices: np.ndarray) -> Targets:
        """Those of the images at ``indices`` (K,) int64."""
        held = {name: value for name in HELD if (value := getattr(self, name)) is not None}
        return replace(self, **{name: taken(value, indices) for name, value in held.items()})


def taken(images: Any, indices: np.ndarray) -> Any:
    """The images at ``indices`` (K,) int64 of a tensor or of a sequence with ``take``."""
    # NumPy copies rows on one thread, which is faster here than torch, and far faster on a busy machine.
    return (
        torch.from_numpy(images.numpy().take(indices, axis=0)) if isinstance(images, Tensor) else images.take(indices)
    )


def boxes(instances: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The objects of one image.

    Args:
        instances: uint8 (H, W), as of `Targets.instance`.
        mask: uint8 (H, W), as of `Targets.mask`.

    Returns:
        Boxes (K, 4) float32, first and last column and row of each object's pixels, as x0, y0, x1, y1 in pixels; and
        their classes (K,) int64.

    Example:
        >>> seen = torch.tensor([[0, 2, 2], [0, 0, 2]], dtype=torch.uint8)
        >>> boxes(seen, 5 * seen.sign())
        (tensor([[1., 0., 2., 1.]]), tensor([5]))
    """
    numbers = instances.unique()
    numbers = numbers[numbers > 0]
    if not len(numbers):
        return torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    classes = [mask[instances == number].mode().values for number in numbers]
    return masks_to_boxes(instances == numbers[:, None, None]).float(), torch.stack(classes).long()


class DepthFiles(Files):
    """Depth files below one folder: images of one channel of 16 bits, in millimetres."""

    def decode(self, file: BinaryIO) -> Tensor:
        """float32 (1, H, W) metres."""
        with open_image(file) as image:
            if not image.mode.startswith("I"):
                raise ValueError(f"not depths of 16 bits, but {image.mode}")
            return torch.from_numpy(np.asarray(image).astype(np.float32)[None] / 1000)

    def take(self, indices: np.ndarray) -> DepthFiles:
        return DepthFiles(self.root, self.paths[indices], self.sizes[indices])


class MaskFiles(Files):
    """Mask files below one folder: images of one channel, or with a palette, whose numbers are looked up.

    Args:
        root: The folder.
        paths: Bytes (N,) below it.
        sizes: int64 (N,) bytes of each file.
        numbers: uint8 (256,), what each number in the files stands for.
    """

    def __init__(self, root: str, paths: np.ndarray, sizes: np.ndarray, numbers: np.ndarray) -> None:
        super().__init__(root, paths, sizes)
        self.numbers = numbers

    def decode(self, file: BinaryIO) -> Tensor:
        """uint8 (1, H, W)."""
        with open_image(file) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(f"not a mask of one channel, but {image.mode}")
            values = np.asarray(image)
        return torch.from_numpy(self.numbers[values][None])

    def take(self, indices: np.ndarray) -> MaskFiles:
        return MaskFiles(self.root, self.paths[indices], self.sizes[indices], self.numbers)

"""Data sets of the user's own: torch-style data sets in Python, or a function that returns them in a file."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from ssl_bench.data.images import Encoded
from ssl_bench.data.sources import MOST_CLASSES, Raw
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.progress import progress
from ssl_bench.utils.references import look_up


class Labelled(Protocol):
    """A torch-style data set: ``[i]`` gives an image and its class.

    The image is of PIL, or uint8: an array (H, W) or (H, W, 3), or a tensor (3, H, W). ``classes``, if it has them, are
    the names; ``targets``, if it has them, the classes of all images, which are then not read for them.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Any, int]: ...


DataPair = tuple[Labelled, Labelled | None]  # training images, and test images if there are any


def read_own(given: str | DataPair) -> tuple[str, tuple[Raw, Raw | None]]:
    """The name of a data set and its splits, nothing decoded yet.

    Args:
        given: ``(train, test)``, or ``file.py:function`` with a function that returns this.

    Raises:
        UserError: The function fails or returns something else, an image is not of a kind that is taken, or labels and
            names of classes don't fit.
    """
    name, again, pair = "own", None, given
    if isinstance(given, str):
        name, function = look_up(given, "data set", callable)
        again = given
        try:
            pair = function()
        except Exception as error:  # whatever a user's function raises
            raise UserError(f"data set {given!r}: {type(error).__name__}: {error}") from error
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise UserError(f"data set {name!r} is a {type(pair).__name__}; it must be a pair: training and test images")
    train, test = pair
    if not isinstance(given, str):
        name = getattr(train, "name", type(train).__name__)
    first = _raw(train, name, "train", 0, again, None)
    return name, (first, None if test is None else _raw(test, name, "test", 1, again, first.classes))


def _raw(
    images: Labelled, name: str, split: str, at: int, reference: str | None, classes: tuple[str, ...] | None
) -> Raw:
    where = f"the {split} images of {name!r}"
    if not len(images):
        raise UserError(f"{where} are none")
    found, known = _known(images)
    if found is None:
        every = progress(range(len(images)), f"labels of {name} {split}", len(images))
        found = [images[index][1] for index in every]
    labels = np.asarray(found)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise UserError(f"the labels of {where} must be whole numbers from 0, one an image")
    if labels.max() >= MOST_CLASSES:
        raise UserError(f"{where} have labels up to {labels.max():,}: at most {MOST_CLASSES:,} classes are taken")
    names: Any = known or classes or range(int(labels.max()) + 1)
    named = tuple(map(str, names))
    if labels.max() >= len(named) or (classes and named != classes):
        raise UserError(f"{where} have other classes than {', '.join(classes or named)}")
    picture = picture_of(images[0][0], f"image 0 of {where}")
    sizes = np.full(len(images), 3 * picture.width * picture.height, dtype=np.int64)
    return Raw(Items(images, where, np.arange(len(images)), sizes, reference, at), labels.astype(np.int64), named)


def _known(images: Any) -> tuple[Any, Any]:
    """The ``targets`` and ``classes`` of a data set, or None; those of a torch ``Subset`` are its set's."""
    targets, classes = (getattr(images, key, None) for key in ("targets", "classes"))
    inner, indices = (getattr(images, key, None) for key in ("dataset", "indices"))
    if targets is None and inner is not None and indices is not None:
        targets, found = _known(inner)
        classes = classes or found
        if targets is not None:
            targets = np.asarray(targets)[np.asarray(indices)]
    changed = getattr(images, "target_transform", None)
    return (None if changed else targets), (None if changed else classes)


def picture_of(image: Any, where: str) -> Image.Image:
    """An image of a data set as one of PIL.

    Raises:
        UserError: It is neither an image of PIL nor uint8, or has neither one nor three channels.
    """
    if isinstance(image, Image.Image):
        if len(image.getbands()) > 4 or image.mode == "CMYK":
            raise UserError(f"{where} is a {image.mode} image; grey and RGB images are taken")
        return image
    kind = str(image.dtype).removeprefix("torch.") if hasattr(image, "dtype") else type(image).__name__
    if kind != "uint8":
        raise UserError(f"{where} is {kind}; it must be an image of PIL or uint8: leave transforms out, views are ours")
    array = image.permute(1, 2, 0).numpy() if isinstance(image, Tensor) and image.ndim == 3 else np.asarray(image)
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3):
        return Image.fromarray(array)
    shape = tuple(image.shape)
    raise UserError(
        f"{where} has the shape {shape}; grey and RGB images are taken: (H, W, 3), or (3, H, W) as a tensor"
    )


class Items(Encoded):
    """The images of a data set in Python, read on access.

    Args:
        images: The data set.
        what: What to call it in errors.
        rows: int64 (N,) which of its images these are.
        sizes: int64 (N,) bytes of each.
        reference: The function that gives it again in another process; None for one that can be pickled.
        at: Which of the function's pair it is.
    """

    def __init__(
        self, images: Any, what: str, rows: np.ndarray, sizes: np.ndarray, reference: str | None, at: int
    ) -> None:
        self.images, self.what, self.rows, self.sizes, self.reference, self.at = (
            images,
            what,
            rows,
            sizes,
            reference,
            at,
        )

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | ({"images": None} if self.reference else {})

    def open(self, index: int) -> BinaryIO:
        """The image as a BMP file, which keeps every pixel and costs little to write."""
        if self.images is None:
            function: Callable[[], Any] = look_up(str(self.reference), "data set", callable)[1]
            self.images = function()[self.at]
        file = io.BytesIO()
        picture = picture_of(self.images[int(self.rows[index])][0], self.where(index))
        picture.convert("RGB").save(file, "BMP")
        file.seek(0)
        return file

    def key(self, index: int) -> str:
        return str(self.rows[index])

    def where(self, index: int) -> str:
        return f"image {self.rows[index]} of {self.what}"

    def take(self, indices: np.ndarray) -> Items:
        return Items(self.images, self.what, self.rows[indices], self.sizes[indices], self.reference, self.at)

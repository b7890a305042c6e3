"""Images as they are held: encoded and decoded on access, or decoded once into memory."""

from __future__ import annotations

import errno
import io
import os
import threading
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ssl_bench.utils.errors import RunError
from ssl_bench.utils.files import open_regular

# What Pillow decodes by itself: for EPS and others it starts programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
MOST_PIXELS = 2**26  # of an image, which takes 0.7 GB to decode
WIDEST = 100  # a side against the other: the shorter one is resized to that of a crop
LARGE = 2**23  # pixels of an image that is decoded while no other large one is
LARGEST = 2**29  # bytes of an image file
_one_large = threading.Lock()


def decode(file: BinaryIO) -> Tensor:
    """Decode an image file to RGB, upright as its EXIF orientation says.

    Args:
        file: An open file of one of ``FORMATS``.

    Returns:
        uint8 (3, H, W).

    Raises:
        Exception: Whatever Pillow raises for bytes it can't decode (OSError, SyntaxError, ValueError, ...).
    """
    with open_image(file) as image, _one_large if image.width * image.height > LARGE else nullcontext():
        ImageOps.exif_transpose(image, in_place=True)
        # Pillow would clip 16-bit grey at 255: keep the upper 8 bits instead.
        grey16 = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode.startswith("I;16") else None
        pixels = np.asarray(image if image.mode == "RGB" else (grey16 or image).convert("RGB"))
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def open_image(file: BinaryIO) -> Image.Image:
    """An image whose header has been read: of one of ``FORMATS``, and of a size that can be worked with.

    Raises:
        Exception: As of ``decode``.
    """
    image = Image.open(file, formats=FORMATS)
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width:,} x {height:,} pixels; at most {MOST_PIXELS:,} are taken")
    if max(width, height) > WIDEST * min(width, height):
        raise ValueError(f"{width:,} x {height:,} pixels; one side is more than {WIDEST} times the other")
    return image


def reason(error: Exception) -> str:
    """Why an image can't be read, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or cut off in its header"
    return "truncated" if "truncated" in text.lower() else text.split("\n")[0] or type(error).__name__


class Encoded(Sequence[Tensor]):
    """Encoded images, decoded on access: ``[i]`` gives uint8 (3, H_i, W_i). Pickles small or shares its memory.

    Attributes:
        sizes: int64 (N,) bytes of each encoded image.
    """

    sizes: np.ndarray

    @abstractmethod
    def open(self, index: int) -> BinaryIO:
        """The encoded image, opened for reading."""

    @abstractmethod
    def key(self, index: int) -> str:
        """Name inside the data set, independent of where the set lies."""

    @abstractmethod
    def where(self, index: int) -> str:
        """What to tell the user about the place of the image."""

    @abstractmethod
    def take(self, indices: np.ndarray) -> Encoded:
        """The images at ``indices`` (K,) int64."""

    def decode(self, file: BinaryIO) -> Tensor:
        """What an encoded image holds, uint8 (3, H, W); whatever Pillow raises where it can't."""
        return decode(file)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        try:
            with self.open(index) as file:
                return self.decode(file)
        except Exception as error:
            raise RunError(f"cannot read image {self.where(index)} ({reason(error)})") from error


class Files(Encoded):
    """Image files below one folder. Paths are one byte array: a million of them pickle as one block."""

    def __init__(self, root: str, paths: np.ndarray, sizes: np.ndarray) -> None:
        self.root, self.paths, self.sizes = root, paths, sizes

    def open(self, index: int) -> BinaryIO:
        return open_regular(self.where(index), LARGEST)

    def key(self, index: int) -> str:
        return os.fsdecode(self.paths[index].item())

    def where(self, index: int) -> str:
        return os.path.join(self.root, self.key(index))

    def take(self, indices: np.ndarray) -> Files:
        return Files(self.root, self.paths[indices], self.sizes[indices])


class Cells(Encoded):
    """Image bytes in an Arrow column, kept encoded in memory or mapped from a file.

    Args:
        column: The column.
        name: What to call the table in messages.
        rows: int64 (N,) which of its rows these are.
        sizes: int64 (N,) bytes of each image.
        folder: Where files must lie that cells may name instead of bytes; anywhere if left out.
        mapped: The file of Arrow's that the column is mapped from, and its name there, for other processes.
    """

    def __init__(
        self,
        column: Any,
        name: str,
        rows: np.ndarray,
        sizes: np.ndarray,
        folder: str | None = None,
        mapped: tuple[str, str] | None = None,
    ) -> None:
        self.column, self.name, self.rows, self.sizes, self.folder = column, name, rows, sizes, folder
        self.mapped = mapped

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "column": None} if self.mapped else vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.mapped:
            import pyarrow as pa

            self.column = pa.ipc.open_file(pa.memory_map(self.mapped[0])).read_all()[self.mapped[1]]

    def open(self, index: int) -> BinaryIO:
        cell = self.column[int(self.rows[index])].as_py()
        if isinstance(cell, dict):  # Hugging Face keeps the bytes, or only the path of a file it has downloaded
            if cell["bytes"] is None and cell.get("path"):
                return open_regular(self._inside(str(cell["path"])), LARGEST)
            cell = cell["bytes"]
        return io.BytesIO(cell or b"")

    def _inside(self, path: str) -> str:
        """The path of a cell, which a file of others may lead anywhere."""
        if self.folder is None:
            return path
        found = os.path.realpath(os.path.join(self.folder, path))
        if not found.startswith(os.path.join(os.path.realpath(self.folder), "")):
            raise OSError(
                errno.EACCES, "its bytes are not in the table, but in a file outside its folder, which is not read"
            )
        return found

    def key(self, index: int) -> str:
        return str(self.rows[index])

    def where(self, index: int) -> str:
        return f"{self.name} row {self.rows[index]}"

    def take(self, indices: np.ndarray) -> Cells:
        return Cells(self.column, self.name, self.rows[indices], self.sizes[indices], self.folder, self.mapped)


def unchanged(images: Tensor | Ragged | Encoded, index: int, sides: tuple[int, int]) -> Tensor:
    """An image of a data set whose images were all of one size.

    Raises:
        RunError: It can't be read any more, or has another size by now.
    """
    image = images[index]
    if (found := tuple(image.shape[1:])) != sides:
        where = images.where(index) if isinstance(images, Encoded) else str(index)
        raise RunError(f"image {where} has changed: {found[1]} x {found[0]} pixels, not {sides[1]} x {sides[0]}")
    return image


class Ragged(Sequence[Tensor]):
    """Decoded images of different sizes in one block of memory, which worker processes share.

    Args:
        pixels: uint8 (total,), the images one after the other.
        starts: int64 (N,) where each image begins.
        shapes: int64 (N, 2) height and width of each image.
        channels: Of every image.
    """

    def __init__(self, pixels: Tensor, starts: np.ndarray, shapes: np.ndarray, channels: int = 3) -> None:
        self.pixels, self.starts, self.shapes, self.channels = pixels, starts, shapes, channels

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        start, (height, width) = int(self.starts[index]), self.shapes[index].tolist()
        size = self.channels * height * width
        return self.pixels[start : start + size].view(self.channels, height, width)

    def take(self, indices: np.ndarray) -> Ragged:
        """The images at ``indices`` (K,) int64; the pixels are shared, not copied."""
        return Ragged(self.pixels, self.starts[indices], self.shapes[indices], self.channels)


def pack(images: list[Tensor]) -> Tensor | Ragged:
    """One block of memory for all images. Empties the list as it goes, so that the pixels are in memory once.

    Args:
        images: N images, uint8 (C, H_i, W_i).

    Returns:
        uint8 (N, C, H, W) when all are of one size.

    Example:
        >>> pack([torch.zeros(3, 4, 6, dtype=torch.uint8), torch.ones(3, 4, 6, dtype=torch.uint8)]).shape
        torch.Size([2, 3, 4, 6])
    """
    channels = images[0].shape[0]
    shapes = np.array([image.shape[1:] for image in images], dtype=np.int64).reshape(-1, 2)
    ends = np.cumsum(channels * shapes[:, 0] * shapes[:, 1])
    starts = np.concatenate([[0], ends[:-1]])
    pixels = np.empty(
        int(ends[-1]), dtype=np.uint8
    )  # NumPy copies on one thread: ten times faster here on a busy machine
    while images:
        index = len(images) - 1
        pixels[starts[index] : ends[index]] = images.pop().numpy().ravel()
    if (shapes == shapes[0]).all():
        return torch.from_numpy(pixels).view(len(shapes), channels, *shapes[0].tolist())
    return Ragged(torch.from_numpy(pixels), starts, shapes, channels)

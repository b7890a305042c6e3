"""Files of tensors that may come from anyone: read without running code, and in memory that their own size bounds."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ssl_bench.utils.errors import UserError

MOST = 500_000  # steps of a pickle; a tensor takes about 30, and a network with its optimiser has some thousand
MOST_VALUES = 50_000  # dicts, lists and what is in them
DEEPEST = 64  # values within values
COPIES = 4  # tensors may share memory (a teacher with its student): how often, at most
SLACK = 2**20  # bytes


def read_tensors(path: Path, harmless: Sequence[Any] = ()) -> Any:
    """What ``torch.save`` has written: tensors and plain values.

    Args:
        path: A regular file.
        harmless: Classes of further plain values; making one runs no code of the file.

    Raises:
        UserError: Compressed or impossibly large parts, too many values, values within themselves, or tensors that are
            no plain arrays of numbers in the file.
        Exception: Whatever torch raises for a file that it can't read, or where a value is neither.
    """
    check_parts(path)
    with torch.serialization.safe_globals(list(harmless)):
        content = torch.load(path, map_location="cpu", weights_only=True)
    check_tensors(content, path)
    return content


def check_tensors(content: Any, path: Path) -> None:
    """Refuse content that takes more memory than its file says.

    Raises:
        UserError: See ``read_tensors``.
    """
    known: set[int] = set()
    size = 0
    for name, tensor in islice(_tensors(content, path), MOST):
        if wrong := _strange(tensor):
            raise UserError(f"{path}: {name} is {wrong}; expected a plain array of numbers")
        if id(tensor) not in known:
            known.add(id(tensor))
            size += tensor.numel() * tensor.element_size()
    if size > COPIES * path.stat().st_size + SLACK:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes and tensors of {size:,}")


def check_parts(path: Path) -> None:
    """Refuse a file of ``torch.save`` whose parts take more memory than it has bytes, or whose values are too many.

    Raises:
        UserError: See ``read_tensors``.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            _check_steps(file, path, pickles=5)  # of torch before 1.6: versions, then the content, then its storages
        return
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise UserError(f"{path} is compressed; torch.save writes files that aren't")
            if sum(part.file_size for part in parts) > path.stat().st_size:
                raise UserError(f"{path} says that its parts are larger than the file")
            for part in parts:
                if part.filename.endswith(".pkl"):
                    part.CRC = None  # type: ignore[assignment]  # torch may leave it out, and doesn't look at it
                    with archive.open(part) as file:
                        _check_steps(file, path)  # type: ignore[arg-type]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _check_steps(file: BinaryIO, path: Path, pickles: int = 1) -> None:
    """Count the steps of pickles without taking them: one byte can make a set of 216."""
    steps = 0
    with suppress(ValueError, IndexError, UnicodeDecodeError, OverflowError):  # no pickle: torch says what is wrong
        for _ in range(pickles):
            steps += sum(1 for _ in islice(pickletools.genops(file), MOST + 1 - steps))
            if steps > MOST:
                raise UserError(f"{path} holds more than {MOST:,} values; weights have thousands")


def _tensors(content: Any, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its name, wherever it stands."""
    left = [("", content, 0)]
    seen = 0
    while left:
        name, value, depth = left.pop()
        seen += 1
        if depth > DEEPEST or seen > MOST_VALUES:
            raise UserError(f"{path}: {name[:60] or 'its content'} holds itself, or too many values")
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            left += [(f"{name}.{key}"[-200:].removeprefix("."), item, depth + 1) for key, item in value.items()]
        elif isinstance(value, list | tuple | set):
            left += [(name, item, depth + 1) for item in value]


def _strange(tensor: Tensor) -> str:
    """What kind of tensor it is, where it isn't an array in memory; else empty."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return "sparse or nested"
    if tensor.is_quantized or tensor.is_complex():
        return str(tensor.dtype).removeprefix("torch.")
    if tensor.device.type != "cpu":
        return f"on {tensor.device.type}, without numbers"
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"of shape {tuple(tensor.shape)} with {tensor.untyped_storage().nbytes():,} bytes"
    return ""

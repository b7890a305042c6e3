"""Tar shards as WebDataset lays them out: files of a sample follow one another, and differ in what comes after a dot.

Every image is read where it stands in its shard, so that any number of processes and workers sees any order of them.
"""

from __future__ import annotations

import glob
import io
import itertools
import os
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ssl_bench.data.images import LARGEST, Encoded, reason
from ssl_bench.data.sources import MOST_CLASSES, Raw, by_split, numbered
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import open_regular, parse_json
from ssl_bench.utils.progress import progress

IMAGES = ("jpg", "jpeg", "png", "webp")
LARGEST_SHARD = 2**42  # bytes
LARGEST_HEADER = 2**16  # bytes of what a name or its attributes may take; tarfile reads them whole
LONGEST = 1000  # characters of a name or a label
LARGEST_LABEL = {"cls": 2**10, "json": 2**20}  # bytes
MOST_SHARDS = 100_000


def read_shards(pattern: str) -> tuple[Raw, Raw | None]:
    """Tar files; training images, and test images where names tell splits apart.

    A sample has one image (``.jpg``, ``.jpeg``, ``.png`` or ``.webp``) and its class in ``.cls``, as a whole number or
    a text, or in ``.json`` under "label" or "cls"; other files are left alone. Without any class images have no labels.

    Args:
        pattern: A tar file; a folder of them; or a path with ``{0000..0146}``, ``*`` or ``?``. Splits are told apart by
            words in the names, as those of Parquet files.

    Raises:
        UserError: A shard is missing, compressed, damaged or holds a link, or a sample isn't as it should be.
    """
    files = _files(pattern)
    if not files:
        raise UserError(
            f"no tar file at {pattern} (expected a file, a folder of *.tar, or a pattern such as "
            "photos-{000..146}.tar)"
        )
    folder = pattern if os.path.isdir(pattern) else os.path.commonpath([os.path.dirname(file) for file in files])
    splits = [files] if len(files) == 1 else by_split(files, folder or ".")
    train = _split(splits[0], None)
    return train, _split(splits[1], train.classes) if len(splits) > 1 else None


def name_of(pattern: str) -> str:
    """What a data set in tar files is called.

    Example:
        >>> [name_of(pattern) for pattern in ("data/photos-{000..146}.tar", "x/photos.tar", "data/photos", "*.tar")]
        ['photos', 'photos', 'photos', 'webdataset']
    """
    start = re.split(r"[{*?]", os.path.basename(os.path.abspath(pattern)))[0]
    return start.removesuffix(".tar").rstrip("-_.") or "webdataset"


def _files(pattern: str) -> list[str]:
    """The shards in the order of their names."""
    if os.path.isdir(pattern):
        return sorted(str(path) for path in Path(pattern).rglob("*.tar"))
    ranges = re.findall(r"\{(\d{1,9})\.\.(\d{1,9})\}", pattern)
    counts = [int(last) - int(first) + 1 for first, last in ranges]
    if min(counts, default=1) < 1 or np.prod(counts, dtype=float) > MOST_SHARDS:
        raise UserError(f"{pattern} names {np.prod(counts, dtype=float):,.0f} shards; 1 to {MOST_SHARDS:,} are taken")
    parts = re.split(r"\{\d{1,9}\.\.\d{1,9}\}", pattern)
    numbers = [[str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)] for first, last in ranges]
    named = ["".join(map("".join, zip(parts, [*chosen, ""], strict=True))) for chosen in itertools.product(*numbers)]
    files: list[str] = []
    for name in named:
        found = sorted(glob.glob(name)) if re.search(r"[*?]", name) else [name]
        files += found
    return files


@dataclass
class _Found:
    """The samples of shards so far, a row each."""

    shard: array[int] = field(default_factory=lambda: array("q"))
    start: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("q"))
    names: list[bytes] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)  # as texts; empty for a sample without one


def _split(files: Sequence[str], classes: tuple[str, ...] | None) -> Raw:
    found = _Found()
    for number, path in enumerate(progress(files, "listing shards", len(files))):
        try:
            with open_regular(path, LARGEST_SHARD) as file:
                _list(file, path, number, found)
        except (OSError, tarfile.TarError, UnicodeError, RecursionError, ValueError, OverflowError) as error:
            raise UserError(f"cannot read {path}: {reason(error) if str(error) else type(error).__name__}") from error
    if not found.names:
        raise UserError(f"no image ({', '.join(IMAGES)}) in {files[0]}" + (" and the others" if len(files) > 1 else ""))
    labels, classes = _labels(found, files, classes)
    places = [np.frombuffer(column, np.int64) for column in (found.shard, found.start, found.size)]
    paths = np.array([os.fsencode(path) for path in files])
    return Raw(Shards(paths, np.array(found.names), *places), labels, classes)


def _labels(found: _Found, files: Sequence[str], classes: tuple[str, ...] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """int64 (N,) and the class names."""
    without = [at for at, text in enumerate(found.labels) if not text]
    if len(without) == len(found.labels):
        if classes:
            raise UserError(f"the images of {files[0]} have no classes, but the training images have")
        return np.zeros(len(found.labels), np.int64), ()
    if without:
        where = f"{os.fsdecode(found.names[without[0]])} in {files[found.shard[without[0]]]}"
        raise UserError(f"{where} has no .cls, nor a .json with a label; other samples have")
    if classes is not None and not classes:
        raise UserError(f"the images of {files[0]} have classes, but the training images have none")
    of_numbers = classes is None or classes == tuple(map(str, range(len(classes))))
    if of_numbers and all(text.isascii() and text.isdigit() for text in found.labels):
        numbers = np.array([int(text) if len(text) < 10 else MOST_CLASSES for text in found.labels], np.int64)
        if classes is None and numbers.max() < MOST_CLASSES:
            classes = tuple(str(i) for i in range(int(numbers.max()) + 1))
        most = MOST_CLASSES if classes is None else len(classes)
        if numbers.max() >= most:
            raise UserError(f"{files[0]} and the others have a label beyond {most - 1:,}, the last class there may be")
        return numbers, classes or ()
    return numbered(found.labels, classes, files[0])


def _list(file: BinaryIO, path: str, number: int, found: _Found) -> None:
    """Note the samples of one shard."""
    end = os.fstat(file.fileno()).st_size
    samples: dict[str, dict[str, tuple[int, int]]] = {}  # of each key by suffix: where, and how many bytes
    done: set[str] = set()
    current = ""
    for member in _members(file, end):
        name = member.name
        key, suffix = _parts(name)
        if not member.isreg() or member.issparse():
            raise UserError(f"{name!r} in {path} is a link, a device or a file with holes; shards hold plain files")
        if key != current:
            if key in done:
                raise UserError(f"the files of {key!r} in {path} don't follow one another")
            _finish(file, path, number, current, samples.pop(current, {}), found)
            current = key
            done.add(key)
        of_key = samples.setdefault(key, {})
        if suffix in of_key:
            raise UserError(f"{name!r} is in {path} twice")
        of_key[suffix] = (member.offset_data, member.size)
    _finish(file, path, number, current, samples.pop(current, {}), found)


def _finish(file: BinaryIO, path: str, number: int, key: str, files: dict[str, tuple[int, int]], found: _Found) -> None:
    """Note one sample, whose files are all known."""
    images = [suffix for suffix in files if suffix in IMAGES]
    if not images:
        return
    if len(images) > 1:
        raise UserError(f"{key!r} in {path} has several images: {', '.join(images)}")
    start, size = files[images[0]]
    label = ""
    for suffix in [each for each in ("cls", "json") if each in files]:
        at, count = files[suffix]
        if count > LARGEST_LABEL[suffix]:
            raise UserError(f"{key}.{suffix} in {path} has {count:,} bytes; at most {LARGEST_LABEL[suffix]:,} are read")
        file.seek(at)
        try:
            text = file.read(count).decode()
            label = label or _label(text if suffix == "cls" else _of_json(text))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{key}.{suffix} in {path} holds no label: {reason(error)}") from error
    for column, value in zip((found.shard, found.start, found.size), (number, start, size), strict=True):
        column.append(value)
    found.names.append(os.fsencode(f"{os.path.basename(path)}/{key}.{images[0]}"))
    found.labels.append(label)


def _of_json(text: str) -> str:
    content: Any = parse_json(text)
    label = content.get("label", content.get("cls", "")) if isinstance(content, dict) else ""
    if isinstance(label, bool) or not isinstance(label, (int, str)):
        raise ValueError("neither a whole number nor a text")
    return str(label)


def _label(text: str) -> str:
    text = text.strip()
    if len(text) > LONGEST or not text.isprintable():
        raise ValueError("a text that is too long, or can't be printed")
    if re.fullmatch(r"-\d+", text):
        raise ValueError(f"{text} is negative")
    return text


def _parts(name: str) -> tuple[str, str]:
    """The key and the suffix of a member, which begins at the first dot of the last part of its name.

    Example:
        >>> _parts("train.d/0001.seg.PNG")
        ('train.d/0001', 'seg.png')
    """
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix.lower()


def _members(file: BinaryIO, end: int) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file but for folders and hidden files, each of which lies where it says.

    Raises:
        tarfile.TarError, ValueError: It isn't one, or is damaged.
    """
    with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
        before = -1
        while (member := tar.next()) is not None:
            tar.members = []  # which would grow with the shard
            if len(member.name) > LONGEST or not member.name.isprintable():
                raise ValueError("a name that is too long, or can't be printed")
            if not before < member.offset <= member.offset_data <= member.offset_data + member.size <= end:
                raise ValueError(f"{member.name!r} lies outside the file")
            before = member.offset
            if member.size > LARGEST and _parts(member.name)[1] in IMAGES:
                raise ValueError(f"{member.name!r} has {member.size:,} bytes; at most {LARGEST:,} are read")
            if not member.isdir() and not os.path.basename(member.name).startswith("."):
                yield member


class _Headers:
    """A tar file of which no header is read that is too large."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.name = file, ""
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """As of a file."""
        if not 0 <= size <= LARGEST_HEADER:
            raise ValueError("a header that is too large")
        return self.file.read(size)


class Shards(Encoded):
    """Images in tar files, each read from its place.

    Args:
        paths: The files, as bytes.
        names: Of the images, as bytes (N,).
        shard: int64 (N,) which file each is in.
        start: int64 (N,) its first byte there.
        sizes: int64 (N,) bytes of each.
    """

    def __init__(
        self, paths: np.ndarray, names: np.ndarray, shard: np.ndarray, start: np.ndarray, sizes: np.ndarray
    ) -> None:
        self.paths, self.names, self.shard, self.start, self.sizes = paths, names, shard, start, sizes

    def open(self, index: int) -> BinaryIO:
        with open_regular(os.fsdecode(self.paths[self.shard[index]].item()), LARGEST_SHARD) as file:
            file.seek(int(self.start[index]))
            return io.BytesIO(file.read(int(self.sizes[index])))

    def key(self, index: int) -> str:
        return os.fsdecode(self.names[index].item())

    def where(self, index: int) -> str:
        return f"{self.key(index)} of {os.fsdecode(os.path.dirname(self.paths[self.shard[index]].item()))}"

    def take(self, indices: np.ndarray) -> Shards:
        return Shards(self.paths, self.names[indices], self.shard[indices], self.start[indices], self.sizes[indices])

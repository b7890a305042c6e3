"""Reading a split once: decode or check every image in parallel, and take its content fingerprint on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import ExifTags
from torch import Tensor

from ssl_bench.data.images import Encoded, Ragged, decode, open_image, pack, reason
from ssl_bench.data.sources import Raw
from ssl_bench.data.targets import Targets, taken
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.memory import free_memory
from ssl_bench.utils.progress import progress

T = TypeVar("T")

# A split whose encoded images take more bytes than this gets its fingerprint from a sample of them, so that ImageNet is
# not read twice. The limit is a constant: a fingerprint must not depend on the memory of the machine.
FULL_HASH_BYTES = 4 * 2**30
HASH_SAMPLE = 1000
SIZE_SAMPLE = 256  # headers read to estimate the decoded size of a split

# How a complete file ends. Valid files may carry bytes after their end, so another end only leads to a full decode.
ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
QUARTER_TURNS = (5, 6, 7, 8)  # orientations that swap height and width


@dataclass(frozen=True)
class Read:
    """A split that has been read.

    Attributes:
        images: uint8 (K, 3, H, W), or a sequence of uint8 (3, H_i, W_i); unreadable images are left out.
        kept: int64 (K,) which images of the source these are.
        fingerprint: 64 hex digits.
        unreadable: "path (why)" of each image that was left out.
        targets: Of the images that are kept.
        sides: Height and width that all images share, held or not; None where they differ.
    """

    images: Tensor | Ragged | Encoded
    kept: np.ndarray
    fingerprint: str
    unreadable: list[str]
    targets: Targets | None = None
    sides: tuple[int, int] | None = None


def read(raw: Raw, description: str, hold: bool) -> Read:
    """Decode every image into memory (``hold``), or check that each can be decoded and leave it encoded.

    The check of images that stay encoded is a cheap one: the header opens and JPEG and PNG files end as they should.

    The fingerprint is a sha256 over the class names and, for each readable image in order, its label and the sha256 of
    its encoded bytes (of its pixels, for sources without files). A split of more than ``FULL_HASH_BYTES`` has path,
    size in bytes and label of every image in it, and the contents of ``HASH_SAMPLE`` seeded ones. It depends neither on
    where the files lie, nor on their times, nor on whether the images are held or streamed.

    Args:
        raw: Images, labels and class names.
        description: For the progress line.
        hold: Whether to keep the decoded images in memory.
    """
    source = raw.images
    if isinstance(source, Tensor):
        digests = [hashlib.sha256(row.tobytes()).digest() for row in source.numpy()]
        every = np.arange(len(source))
        fingerprint = _fingerprint("contents", raw.classes, raw.labels, digests)
        return Read(source, every, fingerprint, [], sides=(source.shape[2], source.shape[3]))
    full = int(source.sizes.sum()) <= FULL_HASH_BYTES
    sample = set(np.random.default_rng(0).permutation(len(source))[:HASH_SAMPLE].tolist())
    seen: set[tuple[int, int]] = set()  # sizes of images that stay encoded; two are as good as all

    def visit(index: int) -> tuple[Tensor | None, bytes, str]:
        record = b"" if full else f"{source.key(index)}\0{source.sizes[index]}\0".encode(errors="surrogateescape")
        try:
            with source.open(index) as file:
                if full or index in sample:
                    record += hashlib.sha256(file.read()).digest()
                    file.seek(0)
                if hold:
                    return source.decode(file), record, ""
                sides = _check(file)
                if len(seen) < 2:
                    file.seek(0)
                    seen.add(_upright(file, sides))
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises almost anything for broken files
            return None, record, f"{source.where(index)} ({reason(error)})"
        return None, record, ""

    images: list[Tensor] = []
    kept, records, unreadable = [], [], []
    for index, (image, record, problem) in enumerate(progress(_parallel(visit, len(source)), description, len(source))):
        if problem:
            unreadable.append(problem)
            continue
        kept.append(index)
        records.append(record)
        if image is not None:
            images.append(image)
    indices = np.array(kept, dtype=np.int64)
    kind = "contents" if full else "sampled"
    fingerprint = _fingerprint(kind, raw.classes, raw.labels[indices], records)
    if not images:
        sides = seen.pop() if len(seen) == 1 else None
        return Read(source.take(indices), indices, fingerprint, unreadable, sides=sides)
    packed = pack(images)
    sides = (packed.shape[2], packed.shape[3]) if isinstance(packed, Tensor) else None
    return Read(packed, indices, fingerprint, unreadable, sides=sides)


def read_with_targets(raw: Raw, description: str, hold: bool) -> Read:
    """As `read`, of images with masks or objects in files beside them: an image goes with its map, and the other way.

    The fingerprint changes with any byte of either, or with anything that annotations say.
    """
    assert raw.targets is not None
    said: Any = raw.targets.annotations
    if said is None and not raw.targets.kinds & {"masks", "instances", "depths"}:  # clips or searches, of images alone
        done = read(raw, description, hold)
        targets = raw.targets.take(done.kept)
        beside = [targets.searches.digest()] if targets.searches is not None else []
        if targets.clips is not None:
            beside.append(hashlib.sha256(targets.clips.numpy().astype("<i8").tobytes()).hexdigest())
        return replace(done, fingerprint=_joined(done.fingerprint, *beside), targets=targets)
    if said is not None:
        done = read(raw, description, hold)
        targets = raw.targets.take(done.kept)
        said = targets.annotations
        return replace(done, fingerprint=_joined(done.fingerprint, said.digest()), targets=targets)
    kind = next(name for name in ("masks", "instances", "depths") if getattr(raw.targets, name) is not None)
    files: Any = getattr(raw.targets, kind)
    hold_maps = hold and kind != "depths"  # which are no bytes
    of_maps = read(Raw(files, raw.labels, raw.targets.classes), f"{description}, {kind}", hold_maps)
    left: Any = raw.images
    rest = Raw(left.take(of_maps.kept), raw.labels[of_maps.kept], raw.classes)
    done = read(rest, description, hold)
    kept = of_maps.kept[done.kept]
    targets = replace(raw.targets, **{kind: taken(of_maps.images, done.kept)})
    if raw.targets.clips is not None:
        targets = replace(targets, clips=raw.targets.clips[kept])
    fingerprint = _joined(done.fingerprint, of_maps.fingerprint)
    return Read(done.images, kept, fingerprint, of_maps.unreadable + done.unreadable, targets, done.sides)


def _check(file: BinaryIO) -> tuple[int, int]:
    """Raise what Pillow raises if an image can't be decoded, without decoding it where that is possible.

    Returns:
        Height and width, as they are stored.
    """
    with open_image(file) as image:
        width, height = image.size
        ending = ENDINGS.get(image.format or "")
        file.seek(-len(ending) if ending else 0, os.SEEK_END)
        complete = ending is None or file.read() == ending
    if not complete:
        file.seek(0)
        decode(file)
    return height, width


def _upright(file: BinaryIO, sides: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image that is turned as its EXIF orientation says, which only JPEG has in the header."""
    if sides[0] == sides[1]:
        return sides
    with open_image(file) as image:
        if image.format == "JPEG":
            return sides[::-1] if image.getexif().get(ExifTags.Base.Orientation, 1) in QUARTER_TURNS else sides
    file.seek(0)
    pixels = decode(file)
    return pixels.shape[1], pixels.shape[2]


def _fingerprint(kind: str, classes: tuple[str, ...], labels: np.ndarray, records: list[bytes]) -> str:
    digest = hashlib.sha256("\0".join([kind, *classes, ""]).encode())
    for label, record in zip(labels.tolist(), records, strict=True):
        digest.update(label.to_bytes(4, "little") + record)
    return digest.hexdigest()


def _joined(*digests: str) -> str:
    """64 hex digits of several digests of 64."""
    return hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest()


def decoded_bytes(images: Encoded | Tensor) -> int:
    """Bytes that the images take when decoded, estimated from the headers of ``SIZE_SAMPLE`` of them."""
    if isinstance(images, Tensor):
        return images.nbytes
    sizes = []
    for index in np.random.default_rng(0).permutation(len(images))[:SIZE_SAMPLE].tolist():
        try:
            with images.open(index) as file, open_image(file) as image:
                sizes.append(3 * image.width * image.height)
        except Exception:  # unreadable: reported when all images are read
            continue
    return int(np.mean(sizes) * len(images)) if sizes else 0


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_here(otherwise: int) -> int:
    """How many processes torchrun has started on this machine, or another number where it has started none."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", otherwise))


def decoders() -> int:
    """Processes or threads to decode images with: as many as this process has threads; under torchrun, which gives each
    process one, its share of the processors."""
    here = processes_here(0)
    return max(1, processors() // here) if here else torch.get_num_threads()


def memory_budget() -> int:
    """Bytes that decoded images may take in this process: SSL_BENCH_MEMORY, otherwise half of the memory that is free.

    The processes that torchrun starts on a machine each get the same part of it.

    Raises:
        UserError: SSL_BENCH_MEMORY is not a whole number.
    """
    given = os.environ.get("SSL_BENCH_MEMORY")
    if given is not None and not given.isdecimal():
        raise UserError(f"SSL_BENCH_MEMORY is {given!r}: expected a number of bytes, such as 8000000000")
    budget = int(given) if given is not None else free_memory() // 2
    return budget // processes_here(1)


def _parallel(function: Callable[[int], T], count: int, chunk: int = 64) -> Iterator[T]:
    """``function(0)`` to ``function(count - 1)`` in order, on a thread per processor: Pillow releases the GIL."""
    threads = processors()

    def several(start: int) -> list[T]:
        return [function(index) for index in range(start, min(start + chunk, count))]

    with ThreadPoolExecutor(threads) as pool:
        yield from chain.from_iterable(pool.map(several, range(0, count, chunk)))

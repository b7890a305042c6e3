"""Data sets by name: labelled images with a content fingerprint, decoded once into memory when they fit."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_bench.data.coco import read_coco
from ssl_bench.data.drawn import DRAWN, draw_raw
from ssl_bench.data.images import Encoded, Ragged
from ssl_bench.data.landmarks import read_oxford, read_paris
from ssl_bench.data.mask_sources import MASKED
from ssl_bench.data.names import DATASETS
from ssl_bench.data.own import DataPair, read_own
from ssl_bench.data.parquet import read_hf, read_parquet
from ssl_bench.data.reading import decoded_bytes, memory_budget, read, read_with_targets
from ssl_bench.data.sources import TORCHVISION, Raw, check_names, read_folder, read_torchvision
from ssl_bench.data.tar_shards import name_of, read_shards
from ssl_bench.data.targets import Targets, taken
from ssl_bench.data.videos import LISTED
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.utils.progress import progress
from ssl_bench.utils.references import is_reference, without_place

TEST_FRACTION = 0.2  # held out of a data set that has no test split
FILES = {"folder": read_folder, "parquet": read_parquet, "webdataset": read_shards}
# More than a label for each image, as the authors lay it out.
LAID_OUT = {**MASKED, **LISTED, "coco2017": read_coco, "roxford5k": read_oxford, "rparis6k": read_paris}


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one split, decoded on access or held decoded in memory.

    Attributes:
        name: Of the data set, never a path.
        split: "train", "dev" or "test".
        labels: int64 (N,); 0 where images have none.
        classes: Class names; ``classes[labels[i]]`` names image i. Empty where images have no labels.
        fingerprint: 64 hex digits that change with any image byte, label or class name (``reading.read``).
        images: uint8 (N, 3, H, W) when decoded and of one size; otherwise ``[i]`` gives uint8 (3, H_i, W_i).
        factors: Nuisance labels (N,) by name, for drawn data sets.
        skipped: Unreadable images that were left out.
        reader: What made the pixels, one of ``data.VERSIONS``.
        origin: The set this one is a subset of, and the indices (N,) int64 there.
        targets: What is known beyond the labels.
        one_size: Height and width of streamed images that share them.
        given: How it was asked for, as `references.without_place` gives it; empty where it came from Python.
    """

    name: str
    split: str
    labels: Tensor
    classes: tuple[str, ...]
    fingerprint: str
    images: Tensor | Ragged | Encoded
    factors: Mapping[str, Tensor] = field(default_factory=dict)
    skipped: int = 0
    reader: str = "images"
    origin: tuple[ImageSet, Tensor] | None = None
    targets: Targets | None = None
    one_size: tuple[int, int] | None = None
    given: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def decoded(self) -> Tensor | None:
        """uint8 (N, 3, H, W), or None when the images differ in size or are decoded on access."""
        return self.images if isinstance(self.images, Tensor) else None

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width that all images share, held or streamed: nothing may depend on which. Or None."""
        return self.one_size if self.decoded is None else (self.decoded.shape[2], self.decoded.shape[3])

    @property
    def streamed(self) -> bool:
        """Whether each access decodes the image anew."""
        return isinstance(self.images, Encoded)

    @property
    def offers(self) -> frozenset[str]:
        """What evaluators may ask of it: some of "labels", "factors", "masks", "instances" and "clips"."""
        own = [*(["labels"] if self.classes else []), *(["factors"] if self.factors else [])]
        kinds = self.targets.kinds if self.targets else frozenset()
        return frozenset(own) | kinds | ({"actions"} if self.classes and "clips" in kinds else set())

    def subset(self, indices: Tensor, split: str) -> ImageSet:
        """The images at ``indices`` (K,) int64 as a split; its fingerprint derives from this one and the indices."""
        at = indices.numpy().astype(np.int64)
        return replace(
            self,
            split=split,
            labels=self.labels[indices],
            fingerprint=hashlib.sha256(bytes.fromhex(self.fingerprint) + at.astype("<i8").tobytes()).hexdigest(),
            images=taken(self.images, at),
            factors={name: values[indices] for name, values in self.factors.items()},
            origin=(self, indices),
            targets=self.targets.take(at) if self.targets else None,
        )


@dataclass(frozen=True)
class Splits:
    """The training images of a data set and the ones its numbers are reported on."""

    train: ImageSet
    test: ImageSet


def load(spec: str | DataPair | Splits, *, skip_unreadable: bool = False, memory: int | None = None) -> Splits:
    """Load a data set by name, or one in Python.

    Args:
        spec: A name of ``DATASETS``, "shapes@64", "folder:PATH", "file.py:NAME" or another of its forms. Named
            sets lie in, or are downloaded to, ``data/`` or the folder in the environment variable SSL_BENCH_DATA. With
            "#N" at its end about N of the training images, the same share of each class, the same for everyone; all
            test images. Or a pair of data sets (``own.Labelled``), or what this function has returned.
        skip_unreadable: Leave unreadable images out and count them, instead of stopping.
        memory: Bytes that decoded images may take; larger sets are decoded on access. Default: the environment variable
            SSL_BENCH_MEMORY, otherwise half of the memory that is free.

    Raises:
        UserError: The name is unknown, the data set is missing or malformed, it has no more than N training images, or
            images are unreadable.
    """
    if isinstance(spec, Splits):
        return spec
    found, given = _load(spec, skip_unreadable, memory), without_place(spec) if isinstance(spec, str) else ""
    return Splits(replace(found.train, given=given), replace(found.test, given=given))


def _load(spec: str | DataPair, skip_unreadable: bool, memory: int | None) -> Splits:
    whole: str | DataPair = spec
    count: int | None = None
    if isinstance(spec, str) and (part := re.fullmatch(r"(.+)#(\d{1,9})", spec)):
        whole, count = part[1], int(part[2])
    if isinstance(whole, str) and whole.partition("@")[0] in DRAWN:
        return _drawn(whole, count)
    name, (train, test) = _read(whole) if isinstance(whole, str) and not is_reference(whole) else read_own(whole)
    spec = spec if isinstance(spec, str) else name
    if count is not None:
        name, (train, _) = f"{name}-{count}", _some(train, count, spec)
    budget = memory_budget() if memory is None else memory
    hold = sum(decoded_bytes(raw.images) for raw in (train, test) if raw is not None) <= budget
    train_set, unreadable = _image_set(train, name, "train", hold)
    test_set = None
    if test is not None:
        test_set, more = _image_set(test, name, "test", hold)
        unreadable += more
    if unreadable and not skip_unreadable:
        many = f"{len(unreadable)} unreadable image{'s' if len(unreadable) > 1 else ''}"
        first = ", ".join(unreadable[:3]) + (", ..." if len(unreadable) > 3 else "")
        raise UserError(f"{many} in {spec}: {first}; use --skip-unreadable to leave them out")
    for images in (train_set, test_set):
        if images is not None and not len(images):
            raise UserError(f"no readable {images.split} image in {spec}")
    if test_set is not None:
        return Splits(train_set, test_set)
    # The name says that the split is ours, so that no number is compared with one on an official test split.
    train_set = replace(train_set, name=f"{name}-80-20")
    print(f"{spec} has no test split: 20 % of each class is held out as test ({train_set.name})", file=sys.stderr)
    kept, out = _stratified(train_set.labels.numpy(), train_set.name, TEST_FRACTION, seed=0)
    return Splits(train_set.subset(kept, "train"), train_set.subset(out, "test"))


def _read(spec: str) -> tuple[str, tuple[Raw, Raw | None]]:
    """The name of a data set and its splits, nothing decoded yet."""
    kind, _, place = spec.partition(":")
    root = Path(os.environ.get("SSL_BENCH_DATA", "data"))
    if kind in FILES and place:
        path = os.path.expanduser(place)
        name = os.path.basename(os.path.abspath(path)).removesuffix(".parquet") or kind
        name = name_of(path) if kind == "webdataset" else name
        check_names([name], "folder")
        return name, FILES[kind](path)
    if kind == "hf" and place:
        return place.rstrip("/").rpartition("/")[2], read_hf(place)
    if spec in LAID_OUT:
        return spec, LAID_OUT[spec](root)
    if spec in TORCHVISION:
        return spec, read_torchvision(spec, root)
    if spec == "imagenet1k":
        if not (root / spec / "train").is_dir():
            raise UserError(
                f"imagenet1k is not in {root / spec}: put its class folders in {root / spec / 'train'} and "
                f"{root / spec / 'val'}, or set SSL_BENCH_DATA to the folder that has {spec}/"
            )
        return spec, read_folder(str(root / spec))
    if os.path.isdir(spec):
        raise UserError(f"{spec!r} is a folder: write folder:{spec} (or parquet:{spec})")
    raise unknown("data set", spec, DATASETS)


def _drawn(spec: str, count: int | None) -> Splits:
    """A data set that is drawn; its train and test splits come from different seeds."""
    kind, given, text = spec.partition("@")
    usual, *counts = DRAWN[kind]
    size = text if given else str(usual)
    if not re.fullmatch(r"\d{1,4}", size) or not 32 <= int(size) <= 512:
        raise UserError(f"cannot draw {spec!r}: the size is a whole number of pixels from 32 to 512, as in {kind}@64")
    sets = []
    name = spec if count is None else f"{spec}-{count}"
    for split, drawn_count, seed in zip(("train", "test"), counts, (0, 1), strict=True):
        raw, targets, factors = draw_raw(kind, drawn_count, int(size), seed)
        if count is not None and split == "train":
            some, kept = _some(replace(raw, targets=targets), count, f"{spec}#{count}")
            assert some.targets is not None
            raw, targets = replace(some, targets=None), some.targets
            factors = {key: values[kept] for key, values in factors.items()}
        drawn_set = _image_set(raw, name, split, hold=True)[0]
        sets.append(replace(drawn_set, factors=factors, reader=kind, targets=targets))
    return Splits(*sets)


def _some(raw: Raw, count: int, spec: str) -> tuple[Raw, Tensor]:
    """About ``count`` of the images, the same share of each class, and their indices, ascending."""
    if raw.targets is not None and raw.targets.searches is not None:
        raise UserError(f"{spec}: its queries search all of its images; leave #{count} out")
    if raw.targets is not None and raw.targets.clips is not None:
        raise UserError(f"{spec}: its images are the frames of clips; leave #{count} out")
    if not 0 < count < len(raw.labels):
        raise UserError(f"{spec}: there are {len(raw.labels)} training images; N is at least 1 and less than that")
    kept, _ = _stratified(raw.labels, spec, 1 - count / len(raw.labels), seed=0)
    at = kept.numpy()
    targets = raw.targets.take(at) if raw.targets else None
    return replace(raw, images=taken(raw.images, at), labels=raw.labels[at], targets=targets), kept


def hold_out(train: ImageSet, fraction: float = 0.1, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """Hold a dev split out of the training images, the same fraction of every class.

    A class of two images or more gives at least one to dev and keeps at least one; a class of one image keeps it.

    Args:
        train: The training images.
        fraction: Share of each class that goes to dev, in (0, 1).
        seed: Which images these are.

    Returns:
        ``(fit, dev)``: disjoint, together ``train``, both in the order of ``train``.

    Raises:
        UserError: The fraction is not in (0, 1), or no class has two images.
    """
    fit, dev = _stratified(train.labels.numpy(), train.name, fraction, seed)
    return train.subset(fit, "train"), train.subset(dev, "dev")


def _stratified(labels: np.ndarray, name: str, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices, ascending: those kept and those held out."""
    if not 0 < fraction < 1:
        raise UserError(f"cannot hold out a fraction of {fraction} of {name}: it must lie between 0 and 1")
    out = np.zeros(len(labels), dtype=bool)
    random = np.random.default_rng(seed)
    for label in range(labels.max(initial=-1) + 1):
        members = random.permutation(np.flatnonzero(labels == label))
        out[members[: min(max(round(fraction * len(members)), 1), len(members) - 1)]] = True
    if not out.any():
        raise UserError(f"cannot hold images out of {name}: no class has two images")
    return torch.from_numpy(np.flatnonzero(~out)), torch.from_numpy(np.flatnonzero(out))


def duplicates(train: ImageSet, test: ImageSet) -> int:
    """Number of test images whose pixels also occur among the training images. Decodes streamed sets: slow there.

    Example:
        >>> pixels = torch.arange(3 * 4 * 4, dtype=torch.uint8).view(1, 3, 4, 4)
        >>> one = ImageSet("one", "train", torch.zeros(1, dtype=torch.int64), ("a",), "00" * 32, pixels)
        >>> duplicates(one, one)
        1
    """
    seen = set(progress(map(_pixel_digest, _each(train)), "comparing train and test", len(train)))
    return sum(_pixel_digest(image) in seen for image in _each(test))


def _each(images: ImageSet) -> Iterator[Tensor]:
    return (images.images[i] for i in range(len(images)))


def _pixel_digest(image: Tensor) -> bytes:
    return hashlib.sha256(str(tuple(image.shape)).encode() + image.numpy().tobytes()).digest()


def _image_set(raw: Raw, name: str, split: str, hold: bool) -> tuple[ImageSet, list[str]]:
    """One split, read, and "path (why)" of each image that is not in it because it is unreadable."""
    description = f"{'decoding' if hold else 'checking'} {name} {split}"
    done = (read_with_targets if raw.targets else read)(raw, description, hold)
    labels = torch.from_numpy(raw.labels[done.kept])
    images = ImageSet(name, split, labels, raw.classes, done.fingerprint, done.images, one_size=done.sides)
    images = replace(images, skipped=len(done.unreadable))
    if done.targets:
        images = replace(images, targets=done.targets, reader="masks")
    return images, done.unreadable

"""Data sets with masks, depths or clips in the layouts of their authors, put below ``data/`` by the user."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ssl_bench.data.images import Files
from ssl_bench.data.lists import missing, read_lines, read_list, size_of
from ssl_bench.data.sources import Raw
from ssl_bench.data.targets import IGNORE, DepthFiles, MaskFiles, Targets

VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def read_voc(root: Path) -> tuple[Raw, Raw]:
    """PASCAL VOC 2012, `train` (1,464 images, without those of SBD) and `val`; 255 is the border of objects."""
    home = root / "VOCdevkit" / "VOC2012"

    def split(name: str) -> Raw:
        stems = read_list(home / "ImageSets" / "Segmentation" / f"{name}.txt")
        pictures = [f"JPEGImages/{stem}.jpg" for stem in stems]
        return _raw(home, pictures, [f"SegmentationClass/{stem}.png" for stem in stems], VOC, np.arange(256))

    return split("train"), split("val")


def read_ade(root: Path) -> tuple[Raw, Raw]:
    """ADE20K of the scene parsing challenge: 150 classes; 0 in the files is no class."""
    home = root / "ADEChallengeData2016"
    names = home / "objectInfo150.txt"
    lines = read_lines(names)[1:] if names.is_file() else []
    classes = tuple(line.split("\t")[-1].split(",")[0].strip() for line in lines) or tuple(map(str, range(1, 151)))
    numbers = (np.arange(256) - 1) % 256  # 0 becomes IGNORE

    def split(name: str) -> Raw:
        stems = sorted(path.stem for path in _listed(home / "images" / name, ".jpg"))
        pictures = [f"images/{name}/{stem}.jpg" for stem in stems]
        return _raw(home, pictures, [f"annotations/{name}/{stem}.png" for stem in stems], classes, numbers)

    return split("training"), split("validation")


def read_pets(root: Path) -> tuple[Raw, Raw]:
    """Oxford-IIIT Pet, as torchvision lays it out: 1 in the trimaps is the pet, 2 background, 3 neither."""
    home = root / "oxford-iiit-pet"
    numbers = np.full(256, IGNORE)
    numbers[[1, 2]] = 1, 0

    def split(name: str) -> Raw:
        stems = read_list(home / "annotations" / f"{name}.txt", columns=True)
        pictures = [f"images/{stem}.jpg" for stem in stems]
        masks = [f"annotations/trimaps/{stem}.png" for stem in stems]
        return _raw(home, pictures, masks, ("background", "pet"), numbers)

    return split("trainval"), split("test")


def read_davis(root: Path) -> tuple[Raw, Raw]:
    """DAVIS 2017 at 480p: frames of clips, with the objects in each."""
    home = root / "DAVIS"

    def split(name: str) -> Raw:
        names = read_list(home / "ImageSets" / "2017" / f"{name}.txt")
        frames = [
            (at, clip, path.stem)
            for at, clip in enumerate(names)
            for path in _listed(home / "JPEGImages" / "480p" / clip, ".jpg")
        ]
        pictures = [f"JPEGImages/480p/{clip}/{stem}.jpg" for _, clip, stem in frames]
        masks = [f"Annotations/480p/{clip}/{stem}.png" for _, clip, stem in frames]
        raw = _raw(home, pictures, masks, (), np.arange(256))
        assert raw.targets is not None
        clips = torch.tensor([at for at, _, _ in frames])
        return Raw(raw.images, raw.labels, (), Targets(instances=raw.targets.masks, clips=clips))

    return split("train"), split("val")


def read_nyu(root: Path) -> tuple[Raw, Raw]:
    """NYU Depth v2 as BTS lays it out: scenes with `rgb_*.jpg` and `sync_depth_*.png` in millimetres."""
    home = root / "nyu-depth-v2"

    def split(name: str) -> Raw:
        pictures = sorted(str(path.relative_to(home)) for path in (home / name).glob("*/rgb_*.jpg"))
        if not pictures:
            raise missing(home / name / "*" / "rgb_*.jpg")
        depths = [re.sub(r"rgb_([^/]*)\.jpg$", r"sync_depth_\1.png", picture) for picture in pictures]
        sizes = [np.array([size_of(home / file) for file in files]) for files in (pictures, depths)]
        paths = [np.array([os.fsencode(file) for file in files]) for files in (pictures, depths)]
        found = DepthFiles(str(home), paths[1], sizes[1])
        labels = np.zeros(len(pictures), np.int64)
        return Raw(Files(str(home), paths[0], sizes[0]), labels, (), Targets(depths=found))

    return split("train"), split("test")


MASKED: dict[str, Callable[[Path], tuple[Raw, Raw]]] = {
    "voc2012": read_voc,
    "ade20k": read_ade,
    "pets-masks": read_pets,
    "davis2017": read_davis,
    "nyu-depth-v2": read_nyu,
}


def _raw(home: Path, pictures: list[str], masks: list[str], classes: tuple[str, ...], numbers: np.ndarray) -> Raw:
    """Images without labels, and their masks; numbers that stand for none of the classes are left out of them."""
    if classes:
        numbers = np.where(numbers < len(classes), numbers, IGNORE)
    sizes = [np.array([size_of(home / name) for name in names]) for names in (pictures, masks)]
    paths = [np.array([os.fsencode(name) for name in names]) for names in (pictures, masks)]
    found = MaskFiles(str(home), paths[1], sizes[1], numbers.astype(np.uint8))
    labels = np.zeros(len(pictures), np.int64)
    return Raw(Files(str(home), paths[0], sizes[0]), labels, (), Targets(classes, masks=found))


def _listed(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder in the order of their names."""
    found = sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))
    if not found:
        raise missing(folder / f"*{suffix}")
    return found

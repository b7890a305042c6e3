"""Targets of anyone: annotations in JSON, lists, ground truths in pickles, and what is read because of them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.cases import HOW_MANY, one_line_at_most, paths, replaced, try_many, values
from hypothesis import strategies as st
from PIL import Image

from ssl_bench.data.datasets import load

COCO: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "7.png", "height": 6, "width": 8}],
    "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}],
    "annotations": [
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 2, 6], "iscrowd": 1,
         "segmentation": {"counts": [0, 12, 36], "size": [6, 8]}},
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [3, 1, 4, 4], "segmentation": [[3, 1, 7, 1, 7, 5, 3, 5]]},
    ],
}  # fmt: skip
LISTS = {
    "voc2012": ("VOCdevkit/VOC2012/ImageSets/Segmentation", "train.txt", "val.txt", "a"),
    "pets-masks": ("oxford-iiit-pet/annotations", "trainval.txt", "test.txt", "a 1 1 1"),
    "davis2017": ("DAVIS/ImageSets/2017", "train.txt", "val.txt", "a"),
    "ucf101": ("ucf101/ucfTrainTestlist", "trainlist01.txt", "testlist01.txt", "a/a.avi 1"),
}
GROUND = {"imlist": ["a", "a"], "qimlist": ["a"], "gnd": [{"easy": np.array([0]), "hard": [1], "bbx": [0.5, 1.5]}]}
WORDS = ["a", "..", "../a", "a/../a", "/etc/passwd", "a//a", "", " ", "#", "\x00", "\u2028", "é", "a" * 5000, "a/a.avi"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSL_BENCH_DATA", str(tmp_path))
    return tmp_path


def picture(path: Path, mode: str = "RGB") -> None:
    """8 x 6 black pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 6)).save(path, "PNG")


def changed(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with some bytes changed, or cut off."""

    def change(case: tuple[list[tuple[int, int]], int]) -> bytes:
        other = bytearray(content)
        for at, byte in case[0]:
            other[at] = byte
        return bytes(other[: len(content) - case[1]])

    places = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    cut = st.one_of(st.just(0), st.integers(0, len(content)))
    return st.tuples(st.lists(places, max_size=4), cut).map(change)


def read_all(spec: str) -> None:
    """A data set, and the targets of each of its images."""
    with one_line_at_most():
        splits = load(spec, skip_unreadable=True)
        for images in (splits.train, splits.test):
            assert images.targets is not None
            look: dict[str, Callable[[int], Any]] = {
                "masks": images.targets.mask,
                "instances": images.targets.instance,
                "objects": images.targets.objects,
            }
            for kind in look.keys() & images.offers:
                for index in range(len(images)):
                    with one_line_at_most():
                        look[kind](index)


@HOW_MANY
def test_any_part_of_annotations(examples: int, data: Path) -> None:
    for split in ("train2017", "val2017"):
        picture(data / "coco" / split / "7.png")
        path = data / "coco" / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(COCO))

    def check(case: tuple[tuple[Any, ...], Any]) -> None:
        try:
            path.write_text(json.dumps(replaced(COCO, *case)))
        except (OverflowError, RecursionError, UnicodeEncodeError, ValueError):  # no file can hold it
            return
        read_all("coco2017")

    try_many(examples, st.tuples(st.sampled_from(paths(COCO)), values), check)


@HOW_MANY
def test_any_bytes_of_annotations(examples: int, data: Path) -> None:
    for split in ("train2017", "val2017"):
        picture(data / "coco" / split / "7.png")
        path = data / "coco" / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(COCO))

    def check(content: bytes) -> None:
        path.write_bytes(content)
        read_all("coco2017")

    try_many(examples, changed(path.read_bytes()), check)


@pytest.mark.parametrize("spec", LISTS)
@HOW_MANY
def test_any_bytes_of_a_list(spec: str, examples: int, data: Path) -> None:
    folder, train, test, line = LISTS[spec]
    (data / folder).mkdir(parents=True)
    (data / folder / "classInd.txt").write_text("1 a\n")
    (data / folder / test).write_text(line + "\n")
    for place in (
        "VOCdevkit/VOC2012/JPEGImages/a.jpg",
        "oxford-iiit-pet/images/a.jpg",
        "DAVIS/JPEGImages/480p/a/a.jpg",
    ):
        picture(data / place)
    for place in (
        "VOCdevkit/VOC2012/SegmentationClass",
        "oxford-iiit-pet/annotations/trimaps",
        "DAVIS/Annotations/480p/a",
    ):
        picture(data / place / "a.png", "L")
    names = st.lists(st.one_of(st.sampled_from([line, *WORDS]), st.text(max_size=8)), max_size=4)
    texts = names.map(lambda found: "\n".join(found).encode(errors="surrogatepass"))

    def check(content: bytes) -> None:
        (data / folder / train).write_bytes(content)
        read_all(spec)

    try_many(examples, st.one_of(texts, st.binary(max_size=20), changed(f"# a\n{line}\n{line}\n".encode())), check)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@HOW_MANY
def test_any_bytes_of_a_ground_truth(protocol: int, examples: int, data: Path) -> None:
    path = data / "roxford5k" / "gnd_roxford5k.pkl"
    picture(path.parent / "jpg" / "a.jpg")

    def check(content: bytes) -> None:
        path.write_bytes(content)
        read_all("roxford5k")

    try_many(examples, st.one_of(st.binary(max_size=40), changed(pickle.dumps(GROUND, protocol=protocol))), check)


@HOW_MANY
def test_any_part_of_a_ground_truth(examples: int, data: Path) -> None:
    path = data / "roxford5k" / "gnd_roxford5k.pkl"
    picture(path.parent / "jpg" / "a.jpg")

    def check(case: tuple[tuple[Any, ...], Any]) -> None:
        path.write_bytes(pickle.dumps(replaced(GROUND, *case)))
        read_all("roxford5k")

    try_many(examples, st.tuples(st.sampled_from(paths(GROUND)), values), check)

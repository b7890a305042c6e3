"""Tar shards of WebDataset: what is read, what is refused, and any bytes."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile.cases import HOW_MANY, one_line_at_most, try_many
from hypothesis import strategies as st
from PIL import Image

from ssl_bench.data import tar_shards
from ssl_bench.data.datasets import load
from ssl_bench.data.tar_shards import read_shards
from ssl_bench.utils.errors import UserError

Member = tuple[str, bytes]


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, members: Sequence[Member | tarfile.TarInfo], how: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=how) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            about = tarfile.TarInfo(member[0])
            about.size = len(member[1])
            tar.addfile(about, io.BytesIO(member[1]))
    return path


def sample(i: int, label: str | None = None) -> list[Member]:
    """An image with its class, and a file that nobody reads."""
    label = str(i % 2) if label is None else label
    return [(f"{i:04d}.png", png(i)), (f"{i:04d}.cls", label.encode()), (f"{i:04d}.txt", b"a caption")]


def samples(of: range, label: Callable[[int], str | None] = lambda i: None) -> list[Member]:
    return [member for i in of for member in sample(i, label(i))]


def said(spec: object) -> str:
    with pytest.raises(UserError) as caught:
        load(f"webdataset:{spec}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shards_are_class_folders_with_the_same_images(tmp_path: Path) -> None:
    for start in (0, 4, 8):
        write(tmp_path / f"photos-train-{start // 4:02d}.tar", samples(range(start, start + 4)))
    write(tmp_path / "photos-val-00.tar", samples(range(12, 14)))
    splits = load(f"webdataset:{tmp_path}/photos-*.tar")
    assert (splits.train.name, splits.train.classes, len(splits.train), len(splits.test)) == (
        "photos",
        ("0", "1"),
        12,
        2,
    )
    assert splits.train.labels.tolist() == [0, 1] * 6
    for i in range(12):
        assert torch.equal(
            splits.train.images[i], torch.from_numpy(np.array(Image.open(io.BytesIO(png(i))))).movedim(2, 0)
        )
        path = tmp_path / "folder" / "train" / str(i % 2) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    streamed = load(f"webdataset:{tmp_path}/photos-*.tar", memory=0).train
    assert streamed.streamed and streamed.fingerprint == splits.train.fingerprint and streamed.sides == (8, 8)
    again = pickle.loads(pickle.dumps(streamed.subset(torch.tensor([7, 3]), "dev"))).images
    assert torch.equal(again[1], splits.train.images[3]) and again.key(0) == "photos-train-01.tar/0007.png"
    with pytest.raises(UserError, match="there are 12 training images"):
        load(f"webdataset:{tmp_path}/photos-*.tar#12")


def test_patterns(tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path / f"x-{i:02d}.tar", samples(range(4 * i, 4 * i + 4)))
    for pattern, count in (
        ("x-{00..11}.tar", 48),
        ("x-{02..03}.tar", 8),
        ("x-0{0..3}.tar", 16),
        ("x-{0..1}{0..1}.tar", 16),
    ):
        assert len(read_shards(f"{tmp_path}/{pattern}")[0].labels) == count
    assert len(read_shards(str(tmp_path))[0].labels) == 48 == len(read_shards(f"{tmp_path}/x-??.tar")[0].labels)
    write(tmp_path / "val.tar", samples(range(4)))
    assert len(read_shards(f"{tmp_path}/val.tar")[0].labels) == 4  # one file is no split
    assert "No such file" in said(tmp_path / "x-{11..12}.tar").replace("no such", "No such")
    assert "names 1,000,000 shards" in said(tmp_path / "x-{000000..999999}.tar")
    assert "names -8 shards" in said(tmp_path / "x-{9..0}.tar")
    assert "no tar file at" in said(tmp_path / "y-*.tar")
    write(tmp_path / "tests" / "val-0.tar", samples(range(4)))
    write(tmp_path / "tests" / "val-1.tar", samples(range(4)))
    assert "no *train*.tar in" in said(tmp_path / "tests")


@pytest.mark.parametrize("how", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_labels(tmp_path: Path, how: int) -> None:
    def found(label: Callable[[int], str]) -> tuple[list[int], tuple[str, ...]]:
        raw = read_shards(str(write(tmp_path / "a.tar", samples(range(4), label), how)))[0]
        return raw.labels.tolist(), raw.classes

    assert found(lambda i: f" {i}\n") == ([0, 1, 2, 3], ("0", "1", "2", "3"))
    assert found(lambda i: ("cat", "a dog")[i % 2]) == ([1, 0, 1, 0], ("a dog", "cat"))
    long = f"{'deep/' * 16}{'x' * 60}"
    members = [
        (f"{long}{i}.{end}", content) for i in range(2) for end, content in (("JSON", b'{"label": 1}'), ("PNG", png(i)))
    ]
    folder = tarfile.TarInfo("deep")
    folder.type = tarfile.DIRTYPE
    raw = read_shards(str(write(tmp_path / "a.tar", [folder, ("._x.png", b"?"), *members], how)))[0]
    assert raw.labels.tolist() == [1, 1] and raw.classes == ("0", "1")
    none = read_shards(str(write(tmp_path / "a.tar", [("a.jpg", b"1"), ("b.x.jpg", b"2"), ("b.jpg", b"3")], how)))[0]
    assert none.classes == () and none.labels.tolist() == [0, 0]


BAD: dict[str, tuple[list[Member], str]] = {
    "two images": ([("a.png", png(0)), ("a.jpg", png(1))], "several images: png, jpg"),
    "twice": ([("a.png", png(0)), ("a.png", png(1))], "'a.png' is in .* twice"),
    "apart": ([*sample(0), *sample(1), ("0000.json", b"{}")], "files of '0000' in .* don't follow one another"),
    "some": ([*sample(0), ("b.png", png(1))], "b.png in .* has no .cls, nor a .json with a label"),
    "no image": ([("a.cls", b"1")], "no image"),
    "large": ([("a.png", png(0)), ("a.cls", b"1" * 2000)], "a.cls in .* has 2,000 bytes; at most 1,024"),
    "json": ([("a.png", png(0)), ("a.json", b"{")], "a.json in .* holds no label: "),
    "deep": ([("a.png", png(0)), ("a.json", b"[" * 100_000)], "a.json in .* holds no label: "),
    "list": ([("a.png", png(0)), ("a.json", json.dumps({"label": [1]}).encode())], "neither a whole number nor a text"),
    "yes": ([("a.png", png(0)), ("a.json", b'{"label": true}')], "neither a whole number nor a text"),
    "bytes": ([("a.png", png(0)), ("a.cls", b"\xff\xfe")], "a.cls in .* holds no label"),
    "lines": ([("a.png", png(0)), ("a.cls", b"a\nb")], "too long, or can't be printed"),
    "negative": ([("a.png", png(0)), ("a.cls", b"-1")], "-1 is negative"),
    "many": ([*sample(0), *sample(1, "99999999999999999999")], "a label beyond 99,999"),
    "name": ([("a\nb.png", png(0))], "a name that is too long, or can't be printed"),
}


@pytest.mark.parametrize("case", BAD)
def test_samples_that_are_not_as_they_should_be(tmp_path: Path, case: str) -> None:
    members, words = BAD[case]
    with pytest.raises(UserError, match=words):
        load(f"webdataset:{write(tmp_path / 'a.tar', members)}")
    said(tmp_path / "a.tar")


def test_test_images_have_the_classes_of_the_training_images(tmp_path: Path) -> None:
    train, test = tmp_path / "train.tar", tmp_path / "test.tar"
    for labels, words in (("ab", "class 'c' of .*test.tar has no training images"), ("01", "beyond 1"), ("0a", "'2'")):
        write(train, samples(range(4), lambda i, labels=labels: labels[i % 2]))  # type: ignore[misc]
        write(test, sample(9, {"ab": "c", "01": "2", "0a": "2"}[labels]))
        with pytest.raises(UserError, match=words):
            load(f"webdataset:{tmp_path}")
    write(test, [("a.png", png(0))])
    assert "have no classes, but the training images have" in said(tmp_path)
    write(train, [("a.png", png(0)), ("b.png", png(0))])
    write(test, sample(0))
    assert "have classes, but the training images have none" in said(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    about = tarfile.TarInfo("0009.png")
    about.type, about.linkname = kind, "/etc/passwd"
    write(tmp_path / "a.tar", [*sample(0), about])
    assert "'0009.png' in " in said(tmp_path / "a.tar") and "is a link, a device" in said(tmp_path / "a.tar")


def test_shards_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    os.mkfifo(tmp_path / "a.tar")
    assert "it is not a file" in said(tmp_path / "a.tar").lower() and "it is not a file" in said(tmp_path).lower()
    assert "not a file" in said("/dev/zero").lower()
    whole = write(tmp_path / "b.tar", samples(range(4))).read_bytes()
    with tarfile.open(tmp_path / "c.tar", "w:gz") as tar:
        tar.add(tmp_path / "b.tar", "b")
    for content in (b"", b"\0" * 20_000, b"text", (tmp_path / "c.tar").read_bytes(), whole[:700], whole[:512]):
        (tmp_path / "b.tar").write_bytes(content)
        assert "b.tar" in said(tmp_path / "b.tar")
    about = tarfile.TarInfo("a.png")
    about.size = 2**34
    (tmp_path / "b.tar").write_bytes(about.tobuf() + b"\0" * 1024)
    assert "b.tar" in said(tmp_path / "b.tar")
    about = tarfile.TarInfo("x" * 200_000)
    (tmp_path / "b.tar").write_bytes(about.tobuf(tarfile.GNU_FORMAT))
    assert "a header that is too large" in said(tmp_path / "b.tar")
    one = tarfile.TarInfo("x")
    one.type, one.size = tarfile.GNUTYPE_LONGNAME, 1
    (tmp_path / "b.tar").write_bytes((one.tobuf() + b"x" + b"\0" * 511) * 3000)  # names of names of names
    assert "b.tar" in said(tmp_path / "b.tar")
    write(tmp_path / "b.tar", samples(range(4)))
    monkeypatch.setattr(tar_shards, "LARGEST", 50)
    assert "at most 50 are read" in said(tmp_path / "b.tar")


@HOW_MANY
def test_any_bytes_of_a_shard(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    formats = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
    wholes = [write(path, [*samples(range(4)), *sample(5)], how).read_bytes() for how in formats]
    long = [(f"{'y' * 200}{i}.{end}", content) for i in range(2) for end, content in (("png", png(i)), ("cls", b"1"))]
    wholes += [write(path, long, how).read_bytes() for how in formats]

    def check(case: tuple[int, list[tuple[int, bytes]]]) -> None:
        content = bytearray(wholes[case[0]])
        for at, other in case[1]:
            content[at : at + len(other)] = other
        for start in range(0, len(content) - 511, 512):  # headers that were changed have the checksum of their bytes
            if content[start + 257 : start + 262] == b"ustar":
                total = sum(content[start : start + 148]) + sum(content[start + 156 : start + 512]) + 8 * 32
                content[start + 148 : start + 156] = b"%06o\0 " % total
        path.write_bytes(bytes(content))
        with one_line_at_most():
            load(f"webdataset:{path}")

    places = st.one_of(st.integers(0, 512), st.integers(0, 6000).map(lambda i: 512 * (i % 12) + i // 12))
    parts = st.one_of(
        st.binary(min_size=1, max_size=12), st.sampled_from([b"\x80" + b"\xff" * 11, b"7" * 11, b"x", b"L"])
    )
    try_many(examples, st.tuples(st.integers(0, 3), st.lists(st.tuples(places, parts), min_size=1, max_size=3)), check)

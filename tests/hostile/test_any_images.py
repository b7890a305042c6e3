"""Data of anyone: folders with loops and pipes, tables of any types, images that are none."""

from __future__ import annotations

import io
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile.cases import HOW_MANY, one_line_at_most, try_many, values
from hypothesis import strategies as st
from PIL import Image

from ssl_bench.commands.show import read_images
from ssl_bench.data import images as images_module
from ssl_bench.data.datasets import load
from ssl_bench.data.images import WIDEST, decode
from ssl_bench.utils.errors import UserError

PATHS = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three images."""
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for seed in range(3):
            (tmp_path / "set" / name / f"{seed}.png").write_bytes(encoded(seed))
    return tmp_path / "set"


def said(folder: Path, kind: str = "folder") -> str:
    with pytest.raises(UserError) as caught:
        load(f"{kind}:{folder}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("target", ["..", ".", "../b", "../../set", "../b/c"])
def test_a_folder_is_read_once(folder: Path, target: str) -> None:
    (folder / "b" / "c").mkdir()
    (folder / "b" / "c" / "x.png").write_bytes(encoded(9))
    (folder / "a" / "link").symlink_to(target)
    assert "whose images are in the data set already" in said(folder)


def test_a_class_may_be_a_link_elsewhere(folder: Path, tmp_path: Path) -> None:
    os.rename(folder / "b", tmp_path / "elsewhere")
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "more").symlink_to(tmp_path / "more")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.png").write_bytes(encoded(9))
    found = load(f"folder:{folder}")
    assert len(found.train) + len(found.test) == 7


def test_a_folder_that_can_not_be_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a" / "secret").mkdir()
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("secret"):  # also where root may read everything
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert "secret: Permission denied" in said(folder)


@pytest.mark.parametrize("place", ["fifo", "link to a fifo", "/dev/zero", "large"])
def test_what_is_no_file_is_an_unreadable_image(folder: Path, tmp_path: Path, place: str) -> None:
    path = folder / "a" / "x.png"
    if place == "/dev/zero":
        path.symlink_to(place)
    elif place == "large":
        with path.open("wb") as file:
            file.truncate(images_module.LARGEST + 1)
    else:
        os.mkfifo(tmp_path / "fifo" if place.startswith("link") else path)
        if place.startswith("link"):
            path.symlink_to(tmp_path / "fifo")
    assert "1 unreadable image" in said(folder)
    with pytest.raises(UserError, match=r"x\.png"):
        read_images(str(folder), (8, 8))
    found = load(f"folder:{folder}", skip_unreadable=True)
    assert len(found.train) + len(found.test) == 6


def test_names_that_are_not_utf8(folder: Path, tmp_path: Path) -> None:
    raw = os.fsencode(folder)
    os.rename(raw + b"/a/0.png", raw + b"/a/\xff.png")  # of a file: no row holds it
    load(f"folder:{folder}")
    os.rename(raw + b"/b", raw + b"/\xff")
    assert "has a name that is not UTF-8" in said(folder)
    os.rename(raw + b"/\xff", raw + b"/b")
    os.rename(raw, os.fsencode(tmp_path) + b"/\xff")
    assert "has a name that is not UTF-8" in said(tmp_path / "\udcff")


def test_no_program_is_started_for_an_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was started"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n"
    (folder / "a" / "x.png").write_bytes(eps)
    assert "not an image" in said(folder)


@pytest.mark.parametrize("size", [(1, 1_000_000), (1_000_000, 1), (8200, 8200), (20_000, 20_000)])
def test_sizes_that_no_crop_is_made_of(folder: Path, size: tuple[int, int]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Image.new("1", size).save(folder / "a" / "x.png")
    assert "pixels" in said(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB


def test_the_widest_is_read(tmp_path: Path) -> None:
    assert decode(io.BytesIO(encoded(size=(2, 2 * WIDEST)))).shape == (3, 2, 2 * WIDEST)


@HOW_MANY
def test_any_bytes_of_an_image(examples: int, folder: Path) -> None:
    kinds = {kind: encoded(1, kind, (16, 16)) for kind in ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")}

    def check(case: tuple[str, int, bytes]) -> None:
        kind, at, other = case
        content = kinds[kind]
        at %= len(content)
        (folder / "a" / "x.png").write_bytes(content[:at] + other + content[at + len(other) :])
        with one_line_at_most():
            load(f"folder:{folder}")

    try_many(examples, st.tuples(st.sampled_from(sorted(kinds)), st.integers(0, 10_000), st.binary(max_size=8)), check)


# Tables ---------------------------------------------------------------------------------------------------------------

PNG = pa.array([encoded(i) for i in range(6)], pa.binary())
WHOLE = pa.array([0, 1] * 3)
LABELS: dict[str, Callable[[], Any]] = {
    "2e7": lambda: pa.array([0, 1, 0, 1, 0, 20_000_000]),
    "64 bits": lambda: pa.array([0, 1, 0, 1, 0, 2**63 - 1]),
    "64 bits without sign": lambda: pa.array([0, 1, 0, 1, 0, 2**64 - 1], pa.uint64()),
    "negative": lambda: pa.array([0, 1, 0, 1, 0, -1]),
    "missing": lambda: pa.array([0, None] * 3),
    "none": lambda: pa.nulls(6),
    "fractions": lambda: pa.array([0.0, 1.5] * 3),
    "lists": lambda: pa.array([[1]] * 6),
    "bools": lambda: pa.array([True, False] * 3),
    "structs": lambda: pa.array([{"a": 1}] * 6),
    "dates": lambda: pa.array([0] * 6, pa.date32()),
    "bytes": lambda: pa.array([b"\xff"] * 6),
}
IMAGES: dict[str, Callable[[], Any]] = {
    "texts": lambda: pa.array(["x"] * 6),
    "numbers": lambda: WHOLE,
    "lists": lambda: pa.array([[1, 2]] * 6),
    "other structs": lambda: pa.array([{"x": 1}] * 6),
    "structs of texts": lambda: pa.array([{"bytes": "x", "path": "y"}] * 6),
    "nothing": lambda: pa.nulls(6, pa.binary()),
    "a path elsewhere": lambda: pa.array([{"bytes": None, "path": "/etc/passwd"}] * 6, PATHS),
    "a path above": lambda: pa.array([{"bytes": None, "path": "../x.png"}] * 6, PATHS),
    "a device": lambda: pa.array([{"bytes": None, "path": "/dev/zero"}] * 6, PATHS),
    "an empty path": lambda: pa.array([{"bytes": None, "path": ""}] * 6, PATHS),
    "no path": lambda: pa.array([{"bytes": None, "path": "a\x00b"}] * 6, PATHS),
}


def write(path: Path, image: Any = PNG, label: Any = WHOLE, metadata: bytes | None = None) -> Path:
    table = pa.table({"image": image, "label": label})
    pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}) if metadata is not None else table, path)
    return path


@pytest.fixture(params=["held", "mapped"])
def fits(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables in memory, and those that are copied and mapped because they don't fit."""
    if request.param == "mapped":
        monkeypatch.setenv("SSL_BENCH_MEMORY", "0")
        monkeypatch.setenv("SSL_BENCH_DATA", str(tmp_path / "data"))


@pytest.mark.usefixtures("fits")
@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_another_type(tmp_path: Path, kind: str) -> None:
    assert "t.parquet" in said(write(tmp_path / "t.parquet", label=LABELS[kind]()), "parquet")


@pytest.mark.usefixtures("fits")
@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_another_type(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "x.png").write_bytes(encoded())
    assert "t.parquet" in said(write(tmp_path / "in" / "t.parquet", IMAGES[kind]()), "parquet")


def test_a_path_below_the_folder_of_the_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.png").write_bytes(encoded())
    path = write(tmp_path / "t.parquet", pa.array([{"bytes": None, "path": "in/x.png"}] * 6, PATHS))
    assert len(load(f"parquet:{path}").train) == 4
    (tmp_path / "out.png").write_bytes(encoded())
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "out.png")
    path = write(tmp_path / "set" / "t.parquet", pa.array([{"bytes": None, "path": "link.png"}] * 6, PATHS))
    assert "outside its folder" in said(path, "parquet")


def test_pipes_and_devices_for_tables(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.parquet")
    assert "is not a file" in said(tmp_path, "parquet")
    said(tmp_path / "x.parquet", "parquet")
    said(Path("/dev/zero"), "parquet")


@HOW_MANY
def test_any_metadata_of_hugging_face(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    inside = values.map(lambda v: {"info": {"features": {"label": {"names": v}}}})
    wrapped = st.one_of(
        values, inside, values.map(lambda v: {"info": {"features": v}}), values.map(lambda v: {"info": v})
    )
    contents = st.one_of(st.binary(max_size=20), wrapped.map(lambda v: json.dumps(v).encode()))

    def check(content: bytes) -> None:
        write(path, metadata=content)
        with one_line_at_most():
            load(f"parquet:{path}")

    try_many(examples, contents, check)


@pytest.mark.usefixtures("fits")
@HOW_MANY
def test_any_bytes_of_a_table(examples: int, tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet")
    whole = path.read_bytes()
    places = st.one_of(
        st.integers(0, 200), st.integers(len(whole) - 600, len(whole) - 1), st.integers(0, len(whole) - 1)
    )

    def check(case: list[tuple[int, int]]) -> None:
        content = bytearray(whole)
        for at, byte in case:
            content[at] = byte
        path.write_bytes(bytes(content))
        with one_line_at_most():
            load(f"parquet:{path}")

    try_many(examples, st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=3), check)

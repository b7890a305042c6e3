"""Data sets: every layout, every mistake a user can make in one, fingerprints, memory and splits."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ssl_bench.data import datasets as datasets_module
from ssl_bench.data import reading, shapes
from ssl_bench.data.datasets import ImageSet, duplicates, hold_out, load
from ssl_bench.data.images import Files, Ragged, decode
from ssl_bench.data.names import DATASETS
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.utils.progress import progress


def picture(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    """Random pixels, uint8 (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(seed: int, kind: str = "PNG", height: int = 8, width: int = 8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(seed, height, width)).save(file, kind)
    return file.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def make_folder(
    root: Path, splits: tuple[str, ...] = ("train", "test"), per_class: int = 3, ragged: bool = False
) -> Path:
    """Classes "a" and "b"; image k of all has pixels ``picture(k)``."""
    seed = 0
    for split in splits:
        for name in ("a", "b"):
            for i in range(per_class):
                width = 8 + (seed % 3 if ragged else 0)
                write(root / split / name / f"{i}.png", encoded(seed, width=width))
                seed += 1
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "photos")


def problem(spec: str, **keywords: bool) -> str:
    with pytest.raises(UserError) as error:
        load(spec, **keywords)
    assert "\n" not in str(error.value)
    return str(error.value)


# Layouts


def test_folder_with_splits(folder: Path) -> None:
    splits = load(f"folder:{folder}")
    train, test = splits.train, splits.test
    assert (train.name, train.split, test.split) == ("photos", "train", "test")
    assert train.classes == test.classes == ("a", "b")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = np.stack([picture(seed) for seed in range(6)]).transpose(0, 3, 1, 2)
    assert train.decoded is not None
    assert train.decoded.dtype == torch.uint8
    assert np.array_equal(train.decoded.numpy(), expected)
    assert train.factors == {}
    assert train.skipped == 0
    assert len(train) == 6


@pytest.mark.parametrize("name", ["val", "validation"])
def test_folder_test_split_may_be_named_validation(tmp_path: Path, name: str) -> None:
    make_folder(tmp_path, ("train", name))
    assert len(load(f"folder:{tmp_path}").test) == 6


def test_folder_prefers_test_to_val(tmp_path: Path) -> None:
    make_folder(tmp_path, ("train", "val", "test"))
    first = load(f"folder:{tmp_path}").test.images[0]
    assert np.array_equal(first.numpy(), picture(12).transpose(2, 0, 1))


def test_folder_without_labels_in_test_falls_back_to_val(tmp_path: Path) -> None:
    make_folder(tmp_path, ("train", "val"))
    write(tmp_path / "test" / "0.png", encoded(99))
    assert len(load(f"folder:{tmp_path}").test) == 6


def test_folder_without_test_holds_out_a_stratified_fifth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "set", ("",), per_class=10)
    splits = load(f"folder:{tmp_path / 'set'}")
    assert splits.train.name == splits.test.name == "set-80-20"
    assert "20 %" in capsys.readouterr().err
    assert torch.bincount(splits.test.labels).tolist() == [2, 2]
    assert torch.bincount(splits.train.labels).tolist() == [8, 8]
    assert duplicates(splits.train, splits.test) == 0
    again = load(f"folder:{tmp_path / 'set'}")
    assert again.test.fingerprint == splits.test.fingerprint != splits.train.fingerprint


def test_a_class_named_train_is_not_a_split(tmp_path: Path) -> None:
    for name in ("train", "car"):
        for i in range(5):
            write(tmp_path / name / f"{i}.png", encoded(i))
    assert load(f"folder:{tmp_path}").train.classes == ("car", "train")


def test_extensions_in_any_case_and_nested_folders_but_no_hidden_files(tmp_path: Path) -> None:
    for i, name in enumerate(["0.JPG", "1.jpeg", "2.PNG", "3.webp", "4.bmp", "5.ppm", "6.tif", "deep/7.Jpeg"]):
        write(tmp_path / "train" / "a" / name, encoded(i, Image.registered_extensions()[Path(name).suffix.lower()]))
    write(tmp_path / "train" / "a" / "notes.txt", b"not an image")
    write(tmp_path / "train" / "a" / "._0.JPG", b"left by another system")
    write(tmp_path / "test" / "a" / "0.png", encoded(9))
    assert len(load(f"folder:{tmp_path}").train) == 8


def test_a_training_class_may_be_absent_from_test(folder: Path) -> None:
    for file in (folder / "test" / "a").iterdir():
        file.unlink()
    (folder / "test" / "a").rmdir()
    assert load(f"folder:{folder}").test.labels.tolist() == [1, 1, 1]


# Mistakes


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    assert missing in problem(f"folder:{missing}")
    assert "class folders" in problem(f"folder:{missing}")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in problem(f"folder:{tmp_path / 'empty'}")


def test_images_without_class_folders(tmp_path: Path) -> None:
    write(tmp_path / "0.png", encoded(0))
    assert "no class folders" in problem(f"folder:{tmp_path}")


def test_test_split_without_train(tmp_path: Path) -> None:
    make_folder(tmp_path, ("test", "val"))
    assert "no train/" in problem(f"folder:{tmp_path}")


def test_class_folder_without_images(folder: Path) -> None:
    (folder / "train" / "c").mkdir()
    assert str(folder / "train" / "c") in problem(f"folder:{folder}")


def test_class_without_training_images(folder: Path) -> None:
    write(folder / "test" / "c" / "0.png", encoded(0))
    text = problem(f"folder:{folder}")
    assert "'c'" in text
    assert "a, b" in text


def test_unknown_name_and_forgotten_prefix(folder: Path) -> None:
    assert "'cifar10'" in problem("cifar01")
    assert "shapes" in problem("cifar01")
    assert f"folder:{folder}" in problem(str(folder))
    assert "unknown data set" in problem("folder:")


@pytest.fixture
def broken(folder: Path) -> Path:
    """Four unreadable training images: cut off, empty, not an image, a broken link; and one unreadable test image."""
    whole = encoded(50, "JPEG", 64, 64)
    write(folder / "train" / "a" / "x1.jpg", whole[: len(whole) // 2])
    write(folder / "train" / "a" / "x2.png", b"")
    write(folder / "train" / "b" / "x3.png", b"<html>not found</html>")
    os.symlink(folder / "gone.png", folder / "train" / "b" / "x4.png")
    png = encoded(51, "PNG", 64, 64)
    write(folder / "test" / "b" / "x5.png", png[:-200])
    return folder


@pytest.mark.parametrize("memory", [10**9, 0], ids=["decoded", "streamed"])
def test_unreadable_images(broken: Path, memory: int) -> None:
    with pytest.raises(UserError) as error:
        load(f"folder:{broken}", memory=memory)
    text = str(error.value)
    assert "5 unreadable images" in text
    assert "--skip-unreadable" in text
    assert "\n" not in text
    assert f"{broken / 'train' / 'a' / 'x1.jpg'} (truncated)" in text
    splits = load(f"folder:{broken}", skip_unreadable=True, memory=memory)
    assert (splits.train.skipped, splits.test.skipped) == (4, 1)
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = [picture(seed).transpose(2, 0, 1) for seed in range(6)]
    assert all(np.array_equal(splits.train.images[i].numpy(), expected[i]) for i in range(6))


def test_nothing_readable(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a" / "0.png", b"x")
    write(tmp_path / "test" / "a" / "0.png", encoded(0))
    assert "no readable train image" in problem(f"folder:{tmp_path}", skip_unreadable=True)


def test_bytes_after_the_end_of_a_jpeg_are_no_damage(folder: Path) -> None:
    write(folder / "train" / "a" / "x.jpg", encoded(0, "JPEG", 64, 64) + b"trailing bytes")
    assert len(load(f"folder:{folder}", memory=0).train) == 7


# Decoding


def test_modes_become_rgb(tmp_path: Path) -> None:
    pixels = picture(0)
    grey16 = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    file = io.BytesIO()
    Image.fromarray(grey16).save(file, "PNG")
    assert decode(file)[0].tolist() == [[0, 0, 1, 255]]
    for mode in ("L", "P", "RGBA", "LA", "1"):
        file = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(file, "PNG")
        assert decode(file).shape == (3, 8, 8)


def test_exif_orientation_is_applied() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    Image.fromarray(picture(0, 4, 6)).save(file, "PNG", exif=exif)
    upright = np.rot90(picture(0, 4, 6), k=3).transpose(2, 0, 1)
    assert np.array_equal(decode(file).numpy(), upright)


def test_ragged_and_streamed_have_the_pixels_of_decoded(tmp_path: Path) -> None:
    make_folder(tmp_path, ragged=True)
    held, streamed = load(f"folder:{tmp_path}").train, load(f"folder:{tmp_path}", memory=0).train
    assert isinstance(held.images, Ragged)
    assert held.decoded is None
    assert not held.streamed
    assert isinstance(streamed.images, Files)
    assert streamed.decoded is None
    assert streamed.streamed
    for i in range(6):
        expected = picture(i, width=8 + i % 3).transpose(2, 0, 1)
        assert np.array_equal(held.images[i].numpy(), expected)
        assert np.array_equal(streamed.images[i].numpy(), expected)
    assert held.fingerprint == streamed.fingerprint
    part = held.subset(torch.tensor([4, 1]), "dev")
    assert part.split == "dev"
    assert part.labels.tolist() == [1, 0]
    assert torch.equal(part.images[0], held.images[4])
    assert torch.equal(part.images[1], held.images[1])
    assert torch.equal(streamed.subset(torch.tensor([4]), "dev").images[0], held.images[4])


def test_memory_limit_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = 12 * 3 * 8 * 8
    monkeypatch.setenv("SSL_BENCH_MEMORY", str(need))
    assert not load(f"folder:{folder}").train.streamed
    monkeypatch.setenv("SSL_BENCH_MEMORY", str(need - 1))
    assert load(f"folder:{folder}").train.streamed
    monkeypatch.setenv("SSL_BENCH_MEMORY", str(2 * need))  # which two processes of this machine share
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert not load(f"folder:{folder}").train.streamed
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert load(f"folder:{folder}").train.streamed
    monkeypatch.delenv("SSL_BENCH_MEMORY")
    monkeypatch.setattr(reading, "free_memory", lambda: 6 * need - 1)
    assert load(f"folder:{folder}").train.streamed
    monkeypatch.setattr(reading, "free_memory", lambda: 6 * need)
    assert not load(f"folder:{folder}").train.streamed
    monkeypatch.setenv("SSL_BENCH_MEMORY", "8 GB")
    assert "'8 GB'" in problem(f"folder:{folder}")


def test_a_streamed_image_that_vanishes_is_a_run_error(folder: Path) -> None:
    train = load(f"folder:{folder}", memory=0).train
    (folder / "train" / "a" / "1.png").unlink()
    with pytest.raises(RunError, match=r"a/1\.png \(no such file or directory\)"):
        train.images[1]


def test_streamed_sets_pickle_as_one_block() -> None:
    paths = np.array([f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG".encode() for i in range(100_000)])
    files = Files("/data/train", paths, np.zeros(len(paths), dtype=np.int64))
    size = len(pickle.dumps(files))
    assert size < 40 * len(paths)
    assert pickle.loads(pickle.dumps(files)).where(7) == "/data/train/n00000007/n00000007_7.JPEG"


# Fingerprints


@pytest.fixture(params=["contents", "sampled"])
def hashing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "sampled":
        monkeypatch.setattr(reading, "FULL_HASH_BYTES", 0)
    return str(request.param)


def test_fingerprint_ignores_place_and_time(tmp_path: Path, hashing: str) -> None:
    first = load(f"folder:{make_folder(tmp_path / 'x' / 'photos')}")
    moved = make_folder(tmp_path / "y" / "other")
    for file in moved.rglob("*.png"):
        os.utime(file, (1, 1))
    second = load(f"folder:{moved}", memory=0)
    assert first.train.fingerprint == second.train.fingerprint
    assert first.test.fingerprint == second.test.fingerprint != first.train.fingerprint
    assert len(first.train.fingerprint) == 64
    assert int(first.train.fingerprint, 16) > 0


def test_fingerprint_sees_one_byte_one_label_one_class_name(folder: Path, hashing: str) -> None:
    before = load(f"folder:{folder}")
    file = folder / "train" / "b" / "2.png"
    content = bytearray(file.read_bytes())
    assert content[-12:-8] == b"\0\0\0\0"  # the empty last chunk; grow the file by a byte that no decoder looks at
    file.write_bytes(bytes(content) + b"\0")
    after = load(f"folder:{folder}")
    assert torch.equal(after.train.images, before.train.images)
    assert after.train.fingerprint != before.train.fingerprint
    assert after.test.fingerprint == before.test.fingerprint
    file.write_bytes(bytes(content))
    assert load(f"folder:{folder}").train.fingerprint == before.train.fingerprint
    same_size = bytearray(encoded(5, "BMP"))
    bmp = write(folder / "train" / "b" / "2.png", bytes(same_size))
    one = load(f"folder:{folder}").train.fingerprint
    same_size[-1] ^= 1
    bmp.write_bytes(bytes(same_size))
    assert load(f"folder:{folder}").train.fingerprint != one
    bmp.write_bytes(bytes(content))
    (folder / "train" / "a" / "2.png").rename(folder / "train" / "b" / "-1.png")  # the same images in the same order
    assert load(f"folder:{folder}").train.fingerprint != before.train.fingerprint
    (folder / "train" / "b" / "-1.png").rename(folder / "train" / "a" / "2.png")
    for split in ("train", "test"):
        (folder / split / "b").rename(folder / split / "c")
    assert load(f"folder:{folder}").train.fingerprint != before.train.fingerprint


def test_sampled_fingerprint_reads_only_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FULL_HASH_BYTES", 0)
    monkeypatch.setattr(reading, "HASH_SAMPLE", 2)
    make_folder(tmp_path)
    before = load(f"folder:{tmp_path}", memory=0).train.fingerprint
    changes = 0
    for file in sorted((tmp_path / "train").rglob("*.png")):
        content = bytearray(file.read_bytes())
        content[50] ^= 1  # inside the compressed pixels
        original = file.read_bytes()
        file.write_bytes(bytes(content))
        changes += load(f"folder:{tmp_path}", memory=0).train.fingerprint != before
        file.write_bytes(original)
    assert changes == 2


def test_subset_fingerprint_depends_on_parent_and_indices(folder: Path) -> None:
    splits = load(f"folder:{folder}")
    one, two = torch.tensor([0, 1]), torch.tensor([1, 0])
    prints = {s.subset(i, "dev").fingerprint for s in (splits.train, splits.test) for i in (one, two)}
    assert len(prints) == 4
    assert splits.train.subset(one, "dev").fingerprint in prints


# Splits


def images_of(labels: list[int], classes: int) -> ImageSet:
    pixels = torch.arange(len(labels), dtype=torch.int64).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).to(torch.uint8)
    names = tuple(f"c{i}" for i in range(classes))
    return ImageSet(
        "made", "train", torch.tensor(labels), names, "ab" * 32, pixels.contiguous(), {"hue": torch.tensor(labels)}
    )


def test_hold_out_is_stratified_disjoint_and_seeded() -> None:
    train = images_of([0] * 100 + [1] * 50 + [2] * 2 + [3] + [0] * 20, classes=5)
    fit, dev = hold_out(train, 0.1, seed=0)
    assert torch.bincount(dev.labels, minlength=5).tolist() == [12, 5, 1, 0, 0]
    assert torch.bincount(fit.labels, minlength=5).tolist() == [108, 45, 1, 1, 0]
    assert (fit.split, dev.split) == ("train", "dev")
    used = torch.cat([fit.images[:, 0, 0, 0], dev.images[:, 0, 0, 0]])
    assert used.sort().values.tolist() == list(range(173))
    assert torch.equal(dev.factors["hue"], dev.labels)
    again = hold_out(train, 0.1, seed=0)
    assert torch.equal(again[1].images, dev.images)
    assert again[1].fingerprint == dev.fingerprint
    other = hold_out(train, 0.1, seed=1)[1]
    assert not torch.equal(other.images, dev.images)
    assert other.fingerprint != dev.fingerprint


def test_a_part_of_the_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(datasets_module.DRAWN, "shapes", (32, 2000, 200))
    whole, part = load("shapes"), load("shapes#600")
    assert (part.train.name, part.test.fingerprint) == ("shapes-600", whole.test.fingerprint)
    share = torch.bincount(part.train.labels) / torch.bincount(whole.train.labels)
    assert len(part.train) == pytest.approx(600, abs=5)
    assert torch.allclose(share, torch.tensor(0.3), atol=5e-3)
    at = {image.numpy().tobytes(): i for i, image in enumerate(whole.train.images)}
    places = torch.tensor([at[image.numpy().tobytes()] for image in part.train.images])
    assert torch.equal(part.train.labels, whole.train.labels[places])
    assert torch.equal(part.train.factors["hue"], whole.train.factors["hue"][places])
    assert part.train.origin is None  # features are computed of these images alone
    assert part.train.fingerprint != whole.train.fingerprint


def test_a_part_is_the_same_for_everyone_and_smaller_than_the_whole(tmp_path: Path) -> None:
    for number in range(20):
        place = tmp_path / "few" / ("a", "b")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (12 * number, 0, 0)).save(place / f"{number}.png")
    spec = f"folder:{tmp_path / 'few'}#10"
    part, again = load(spec), load(spec)
    assert part.train.name == "few-10-80-20" and part.train.fingerprint == again.train.fingerprint
    for mistake in ("#0", "#20"):
        with pytest.raises(UserError, match="there are 20 training images"):
            load(spec.replace("#10", mistake))


def test_hold_out_mistakes() -> None:
    with pytest.raises(UserError, match=r"fraction of 1\.5"):
        hold_out(images_of([0, 0], 1), 1.5)
    with pytest.raises(UserError, match="no class has two images"):
        hold_out(images_of([0, 1], 2))


def test_duplicates_counts_test_images_seen_in_training(folder: Path) -> None:
    assert duplicates(*(getattr(load(f"folder:{folder}"), split) for split in ("train", "test"))) == 0
    for i, name in enumerate(("7.png", "8.bmp")):  # equal pixels, other files
        Image.fromarray(picture(i)).save(folder / "test" / "a" / name)
    splits = load(f"folder:{folder}")
    assert duplicates(splits.train, splits.test) == 2


# Shapes


def test_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = shapes.draw
    asked = []

    def fewer(n: int, *, size: int = 32, seed: int = 0) -> object:
        asked.append((n, size, seed))
        return draw(20, size=size, seed=seed)

    monkeypatch.setattr(shapes, "draw", fewer)
    splits = load("shapes")
    assert [n for n, _, _ in asked] == [10_000, 4_000]
    assert asked[0][2] != asked[1][2]
    assert splits.train.decoded is not None
    assert splits.train.decoded.shape == (20, 3, 32, 32)
    assert splits.train.classes == tuple(shapes.CLASSES)
    assert splits.train.name == "shapes"
    assert splits.train.factors
    assert all(len(values) == 20 for values in splits.train.factors.values())
    assert load("shapes@64").train.images[0].shape == (3, 64, 64)
    assert load("shapes").train.fingerprint == splits.train.fingerprint
    for wrong in ("shapes@", "shapes@big", "shapes@8", "shapes@-32"):
        if wrong != "shapes@":
            assert wrong in problem(wrong)


# Parquet, torchvision, Hugging Face


def make_table(seeds: range, labels: list[object], names: list[str] | None = None, plain: bool = False) -> pa.Table:
    files = [encoded(seed) for seed in seeds]
    images = pa.array(files if plain else [{"bytes": file, "path": None} for file in files])
    table = pa.table({"img" if plain else "image": images, "label": pa.array(labels)})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return table


def test_parquet_folder_equals_class_folders(tmp_path: Path, folder: Path) -> None:
    data_folder = tmp_path / "hub" / "data"
    data_folder.mkdir(parents=True)
    pq.write_table(make_table(range(0, 4), [0, 0, 0, 1], ["a", "b"]), data_folder / "train-00000-of-00002.parquet")
    pq.write_table(make_table(range(4, 6), [1, 1], ["a", "b"]), data_folder / "train-00001-of-00002.parquet")
    pq.write_table(make_table(range(6, 12), [0, 0, 0, 1, 1, 1], ["a", "b"]), data_folder / "validation-0.parquet")
    ours, expected = load(f"parquet:{tmp_path / 'hub'}"), load(f"folder:{folder}")
    assert ours.train.name == "hub"
    assert ours.train.classes == ("a", "b")
    assert torch.equal(ours.train.images, expected.train.images)
    assert torch.equal(ours.test.images, expected.test.images)
    assert ours.train.fingerprint == expected.train.fingerprint  # the same bytes, labels and classes
    streamed = load(f"parquet:{tmp_path / 'hub'}", memory=0).train
    assert torch.equal(pickle.loads(pickle.dumps(streamed.images))[5], expected.train.images[5])


def test_parquet_file_with_plain_bytes_and_text_labels(tmp_path: Path) -> None:
    pq.write_table(make_table(range(10), ["dog", "cat"] * 5, plain=True), tmp_path / "pets.parquet")
    splits = load(f"parquet:{tmp_path / 'pets.parquet'}")
    assert splits.train.classes == ("cat", "dog")
    assert splits.train.name == "pets-80-20"
    assert (len(splits.train), len(splits.test)) == (8, 2)


def test_parquet_test_split_without_labels_is_not_used(tmp_path: Path) -> None:
    for split, labels in (("train", [0, 1]), ("test", [-1, -1]), ("validation", [1, 0])):
        pq.write_table(make_table(range(2), labels), tmp_path / f"{split}.parquet")
    assert load(f"parquet:{tmp_path}").test.labels.tolist() == [1, 0]


def test_parquet_mistakes(tmp_path: Path) -> None:
    assert "no Parquet file" in problem(f"parquet:{tmp_path}")
    pq.write_table(pa.table({"picture": [b""], "label": [0]}), tmp_path / "train.parquet")
    assert "image or img" in problem(f"parquet:{tmp_path}")
    assert "picture" in problem(f"parquet:{tmp_path}")
    pq.write_table(make_table(range(2), ["a", "b"]), tmp_path / "train.parquet")
    pq.write_table(make_table(range(2), ["a", "c"]), tmp_path / "test.parquet")
    assert "'c'" in problem(f"parquet:{tmp_path}")
    pq.write_table(make_table(range(2), [0, 1]), tmp_path / "train.parquet")
    pq.write_table(make_table(range(2), [0, 2]), tmp_path / "test.parquet")
    assert "label 2" in problem(f"parquet:{tmp_path}")
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    assert "train.parquet" in problem(f"parquet:{tmp_path}")
    table = make_table(range(2), [0, 1]).set_column(0, "image", pa.array([{"bytes": b"x"}, {"bytes": encoded(1)}]))
    pq.write_table(table, tmp_path / "train.parquet")
    pq.write_table(make_table(range(2), [0, 1]), tmp_path / "test.parquet")
    assert "train.parquet row 0 (not an image" in problem(f"parquet:{tmp_path}")


def test_torchvision_arrays_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    class Arrays:
        classes = ("x", "y")

        def __init__(self, root: str, train: bool, download: bool = False) -> None:
            if not download:
                raise RuntimeError("Dataset not found")
            self.data = np.stack([picture(seed) for seed in (range(3) if train else range(3, 5))])
            self.targets = [0, 1, 0] if train else [1, 1]

    class Listed:
        def __init__(self, root: str, split: str, download: bool = False) -> None:
            seeds = {"train": [0, 1], "val": [2], "test": [3]}[split]
            self._image_files = [write(Path(root) / "flowers" / f"{seed}.png", encoded(seed)) for seed in seeds]
            self._labels = [seed % 2 for seed in seeds]

    monkeypatch.setenv("SSL_BENCH_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "CIFAR10", Arrays)
    monkeypatch.setattr(datasets, "Flowers102", Listed)
    splits = load("cifar10")
    assert np.array_equal(splits.train.images[1].numpy(), picture(1).transpose(2, 0, 1))
    assert splits.train.classes == ("x", "y")
    assert splits.test.labels.tolist() == [1, 1]
    flowers = load("flowers102").train
    assert flowers.labels.tolist() == [0, 1, 0]
    assert flowers.classes == ("0", "1")
    assert np.array_equal(flowers.images[2].numpy(), picture(2).transpose(2, 0, 1))


def test_torchvision_names_and_arguments_exist() -> None:
    import inspect

    from torchvision import datasets

    for name, (kind, train, test) in datasets_module.TORCHVISION.items():
        assert name in DATASETS
        accepted = inspect.signature(getattr(datasets, kind)).parameters
        for arguments in [*train, test or {}]:
            assert set(arguments) | {"download"} <= set(accepted), name


def test_grey_arrays_become_three_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    grey = torch.from_numpy(picture(0)[None, :, :, 0])
    made = types.SimpleNamespace(data=grey, targets=torch.tensor([0]), classes=["shoe"])
    monkeypatch.setattr(datasets, "FashionMNIST", lambda root, train: made)
    image = load("fashionmnist").train.images[0]
    assert image.shape == (3, 8, 8)
    assert all(torch.equal(channel, grey[0]) for channel in image)


def test_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def offline(root: str, train: bool, download: bool = False) -> None:
        raise OSError("<urlopen error no route to host>") if download else RuntimeError("Dataset not found")

    monkeypatch.setattr(datasets, "CIFAR100", offline)
    monkeypatch.setenv("SSL_BENCH_DATA", str(tmp_path))
    text = problem("cifar100")
    assert "no route to host" in text
    assert str(tmp_path) in text
    assert "SSL_BENCH_DATA" in text


def test_imagenet_is_class_folders_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_BENCH_DATA", str(tmp_path))
    assert str(tmp_path / "imagenet1k" / "train") in problem("imagenet1k")
    make_folder(tmp_path / "imagenet1k", ("train", "val"))
    assert len(load("imagenet1k").test) == 6


def test_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in problem("hf:someone/pets")

    class Split:
        def __init__(self, table: pa.Table) -> None:
            self.data = types.SimpleNamespace(table=table)

    made = {
        "train": Split(make_table(range(4), [0, 1, 0, 1], ["a", "b"])),
        "test": Split(make_table(range(4, 6), [0, 1])),
    }
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=lambda name: made))
    splits = load("hf:someone/pets")
    assert splits.train.name == "pets"
    assert splits.train.classes == ("a", "b")
    assert np.array_equal(splits.test.images[0].numpy(), picture(4).transpose(2, 0, 1))
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=lambda name: {"all": None}))
    assert "no train split" in problem("hf:someone/pets")


# Progress


def test_progress_says_little_and_changes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(progress(range(1000), "counting")) == list(range(1000))
    assert capsys.readouterr().err == ""
    clock = iter(range(0, 1000))
    monkeypatch.setattr("ssl_bench.utils.progress.time.monotonic", lambda: next(clock))
    assert len(list(progress(range(100), "counting"))) == 100
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("counting: 91 of 100 (91 %)")

"""Features on disk: the same bits as in memory, made once, found again, never the wrong ones."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import NANO, blobs
from torch import Tensor

from ssl_bench.backbones.pixels import Pixels
from ssl_bench.backbones.vit import SIZES, ViT
from ssl_bench.data import VERSIONS
from ssl_bench.data.datasets import ImageSet, hold_out, load
from ssl_bench.evaluations import frozen_encoder as features_module
from ssl_bench.evaluations.feature_cache import FeatureCache, encoder_key
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.utils.errors import RunError

POOLINGS = ("cls", "mean")
FORK = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")  # a fork has imported everything


class Counting(ViT):
    """Counts the images that go through it, and stops at one of its calls as if it were killed."""

    seen = calls = 0
    killed_at = -1

    def features(self, images: Tensor, poolings: Any) -> dict[str, Tensor]:
        if self.calls == self.killed_at:
            raise KeyboardInterrupt
        type(self).seen += len(images)
        type(self).calls += 1
        return super().features(images, poolings)


@pytest.fixture(autouse=True)
def _from_zero() -> None:
    Counting.seen = Counting.calls = 0
    Counting.killed_at = -1


def encoder(seed: int = 0, **options: Any) -> Counting:
    torch.manual_seed(seed)
    return Counting(NANO, **options)


def extract(cache: Path | None, images: ImageSet, network: Any = None, poolings: Any = POOLINGS) -> dict[str, Tensor]:
    return FrozenEncoder(network or encoder(), batch_size=7, cache=cache).features(images, poolings)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return blobs(31, "train", 0)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_mapped_features_are_those_in_memory_and_the_second_encoder_sees_no_image(
    tmp_path: Path, images: ImageSet
) -> None:
    in_memory = extract(None, images)
    first = extract(tmp_path, images)
    assert Counting.seen == 62
    second = extract(tmp_path, images)
    assert Counting.seen == 62
    assert same(first, in_memory) and same(second, in_memory)
    assert all(rows.dtype == torch.float32 for rows in second.values())
    names = {path.name for path in tmp_path.glob("*/*")}
    assert names == {".lock", "cls.json", "cls.npy", "mean.json", "mean.npy"}
    assert np.array_equal(np.load(next(tmp_path.glob("*/cls.npy"))), in_memory["cls"].numpy())  # for anyone to read


def test_poolings_asked_for_later_join_those_that_are_there(tmp_path: Path, images: ImageSet) -> None:
    extract(tmp_path, images, poolings=["cls"])
    both = FrozenEncoder(encoder(), ["mean", "last4"], batch_size=7, cache=tmp_path)
    both.features(images, ["cls"])
    assert Counting.seen == 62  # one pass for all that was announced and is missing
    both.features(images, ["mean", "last4"])
    assert Counting.seen == 62


def test_other_weights_options_images_and_transforms_are_other_features(tmp_path: Path, images: ImageSet) -> None:
    extract(tmp_path, images)
    heads = encoder(num_heads=3)  # the same shapes of weights
    heads.load_state_dict(encoder().state_dict())
    assert encoder_key(heads)["weights"] == encoder_key(encoder())["weights"]
    torch.manual_seed(0)
    larger = Counting(NANO.replace("_16", "_32"), pos_embed="none")
    for network, data in [(encoder(1), images), (heads, images), (encoder(), blobs(31, "train", 9)), (larger, images)]:
        before = Counting.seen
        fresh = extract(tmp_path, data, network)
        assert Counting.seen == before + 31
        assert same(fresh, extract(None, data, network))
    assert len(list(tmp_path.glob("*/cls.npy"))) == 5


def test_the_version_of_the_data_is_part_of_the_key(
    tmp_path: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised by changes that move an image without its fingerprint."""
    extract(tmp_path, images)
    monkeypatch.setitem(VERSIONS, images.reader, 2)
    extract(tmp_path, images)
    assert Counting.seen == 2 * len(images)


def test_precision_is_part_of_the_key(tmp_path: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for precision in ("32", "bf16-mixed"):
        monkeypatch.setattr(features_module, "best_precision", lambda precision=precision: precision)
        found[precision] = extract(tmp_path, images)
    assert Counting.seen == 62
    assert not same(found["32"], found["bf16-mixed"])


@pytest.mark.parametrize("damage", ["cut", "flipped", "zeros", "note", "nothing"])
def test_damaged_files_are_extracted_again(
    tmp_path: Path, images: ImageSet, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {name: rows.clone() for name, rows in extract(tmp_path, images).items()}
    path = next(tmp_path.glob("*/mean.npy"))
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-4])
    elif damage == "flipped":
        content[-2] ^= 1
        path.write_bytes(content)
    elif damage == "zeros":
        path.write_bytes(content[:-96] + bytes(96))
    elif damage == "note":
        path.with_suffix(".json").write_text("{")
    elif damage == "nothing":
        path.write_bytes(b"")
    assert same(extract(tmp_path, images), expected)
    assert Counting.seen == 62
    assert f"{path} is damaged" in capsys.readouterr().err
    assert same(extract(tmp_path, images), expected)
    assert Counting.seen == 62


def test_what_evaluators_write_into_features_stays_theirs(tmp_path: Path, images: ImageSet) -> None:
    first = extract(tmp_path, images)
    kept = first["cls"].clone()
    first["cls"].zero_()
    assert torch.equal(extract(tmp_path, images)["cls"], kept)


@pytest.mark.parametrize("at", [0, 1, 3, 4])
def test_a_killed_extraction_goes_on_at_its_last_batch(tmp_path: Path, images: ImageSet, at: int) -> None:
    Counting.killed_at = at
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path, images)
    assert Counting.seen == 7 * at
    Counting.killed_at = -1
    found = extract(tmp_path, images)
    assert Counting.seen == 31
    assert same(found, extract(None, images))
    assert not list(tmp_path.glob("*/.cls*"))


def test_half_written_batches_are_dropped(tmp_path: Path, images: ImageSet) -> None:
    Counting.killed_at = 3
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path, images)
    part = next(tmp_path.glob("*/.mean.0-of-1.npy"))
    with part.open("r+b") as file:
        file.truncate(part.stat().st_size - 3 * 96 - 5)
    Counting.killed_at = -1
    assert same(extract(tmp_path, images), extract(None, images))


def test_rows_of_a_subset(tmp_path: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, dev = hold_out(images)
    frozen = FrozenEncoder(encoder(), batch_size=7, cache=tmp_path)
    whole = frozen.features(images, POOLINGS)
    assert fit.origin is not None
    copied = frozen.features(fit, POOLINGS)
    assert all(torch.equal(copied[p], whole[p][fit.origin[1]]) for p in POOLINGS)
    monkeypatch.setattr(features_module, "IN_MEMORY", 100)
    mapped = frozen.features(fit, POOLINGS)
    assert same(mapped, copied)
    assert frozen.features(fit, POOLINGS)["cls"] is mapped["cls"]  # written once
    assert torch.equal(frozen.features(dev, ["cls"])["cls"], whole["cls"][dev.origin[1]])  # type: ignore[index]
    assert Counting.seen == 31


def test_a_full_disk_keeps_features_in_memory(
    tmp_path: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 100, 100)
    monkeypatch.setattr("ssl_bench.evaluations.feature_cache.shutil.disk_usage", lambda _: usage)
    frozen = FrozenEncoder(encoder(), batch_size=7, cache=tmp_path)
    found = frozen.features(images, POOLINGS)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(tmp_path) in error and "stay in memory" in error
    assert same(found, extract(None, images))
    frozen.features(images, POOLINGS)
    assert Counting.seen == 7 + 31 + 31  # noticed after the first batch; not tried again
    assert {path.name for path in tmp_path.glob("*/*")} == {".lock"}


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_written(tmp_path: Path, images: ImageSet) -> None:
    tmp_path.chmod(0o500)
    assert same(extract(tmp_path / "features", images), extract(None, images))


def test_a_file_in_the_way_is_no_reason_to_stop(
    tmp_path: Path, images: ImageSet, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "features").write_text("")
    assert same(extract(tmp_path / "features", images), extract(None, images))
    assert "stay in memory" in capsys.readouterr().err


def test_raw_pixels_stay_out(tmp_path: Path, images: ImageSet) -> None:
    found = extract(tmp_path, images, Pixels("pixels_16"), ["pixels"])
    assert found["pixels"].shape == (31, 768)
    assert not list(tmp_path.iterdir())


def test_the_note_says_what_the_file_is(tmp_path: Path, images: ImageSet) -> None:
    extract(tmp_path, images)
    note = json.loads(next(tmp_path.glob("*/cls.json")).read_text())
    assert note["weights"] == encoder_key(encoder())["weights"] and note["images"] == images.fingerprint
    assert (note["pooling"], note["shape"], note["dtype"]) == ("cls", [31, 24], "float32")
    assert {"options", "transform", "precision", "features", "backbone", "made", "crc32", "format"} <= note.keys()


def _two(folder: Path, results: Any, rank: int, port: int) -> None:
    """One of two processes: first as a run of its own, then as a part of a joint one."""
    torch.set_num_threads(1)
    SIZES["vit_nano"] = (24, 2, 2)
    data = blobs(31, "train", 0)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    separate = {name: rows.numpy() for name, rows in extract(folder / "separate", data).items()}
    seen = [Counting.seen]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    joint = {name: rows.numpy() for name, rows in extract(folder / "joint", data).items()}
    seen.append(Counting.seen - seen[0])
    extract(folder / "joint", data)
    extract(folder / "joint", blobs(5, "test", 3))  # one batch: nothing is left for the other process
    seen.append(Counting.seen - sum(seen))
    torch.distributed.destroy_process_group()
    results.put((seen, separate, joint))


def test_two_processes_are_one(tmp_path: Path, images: ImageSet) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    queue = FORK.Queue()
    processes = [FORK.Process(target=_two, args=(tmp_path, queue, rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        predictions = [queue.get(timeout=120) for _ in processes]
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    separate, joint, rest = zip(*(seen for seen, *_ in predictions), strict=True)
    assert sorted(separate) == [0, 31]  # the second waited for the first, and read
    assert sorted(joint) == [10, 21]  # shares of whole batches of 7
    assert sorted(rest) == [0, 5]
    expected = extract(None, images)
    for _, *found in predictions:
        assert all(same({name: torch.from_numpy(rows) for name, rows in part.items()}, expected) for part in found)


def test_one_of_several_processes_that_cannot_write_stops(
    tmp_path: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FeatureCache, "fill", fill)
    monkeypatch.setattr(features_module, "process", lambda: (1, 2))
    with pytest.raises(RunError, match="No space left"):
        extract(tmp_path, images)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_gone_is_one_line(tmp_path: Path, nano: ViT, workers: int) -> None:
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / "set" / split / name).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(tmp_path / "set" / split / name / "x.png")
    images = load(f"folder:{tmp_path / 'set'}", memory=0).train
    (tmp_path / "set" / "train" / "b" / "x.png").unlink()
    with pytest.raises(RunError, match=r"^cannot read image .*x\.png \(no such file or directory\)$"):
        FrozenEncoder(nano, workers=workers).features(images, ["cls"])

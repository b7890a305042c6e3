"""Streams: any number of processes and workers sees the same images in the same order, and goes on anywhere in it."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny import tiny_recipe

from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.commands.pretrain import run
from ssl_bench.config.recipe import load_recipe
from ssl_bench.data import arrow_files
from ssl_bench.data.datasets import ImageSet, load
from ssl_bench.data.images import Cells
from ssl_bench.data.loader import Loader
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.utils.errors import UserError
from ssl_bench.views.view import View

COUNT, BATCH, STEPS = 26, 4, 9  # six batches an epoch, and two images that fill none
VIEWS = [View(size=8, count=2), View(size=4, scale=(0.1, 0.4))]


def png(i: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (12, 10 + i % 3, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_parquet(path: Path, of: range, label: Any = None) -> None:
    labels = label or pa.array([("a", "b")[i % 2] for i in of]).dictionary_encode()
    table = pa.table({"other": list(of), "image": [{"bytes": png(i), "path": None} for i in of], "label": labels})
    pq.write_table(table, path, row_group_size=4)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same images in class folders, in three Parquet files of several row groups and in tar shards."""
    monkeypatch.setenv("SSL_BENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(arrow_files, "ROWS", 3)
    for split, count in (("train", COUNT), ("test", 2)):
        for i in range(count):
            path = tmp_path / "folder" / split / ("a", "b")[i % 2] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(i))
    (tmp_path / "parquet").mkdir()
    for number, start in enumerate(range(0, COUNT, 10)):
        write_parquet(tmp_path / "parquet" / f"train-{number}.parquet", range(start, min(start + 10, COUNT)))
    write_parquet(tmp_path / "parquet" / "test-0.parquet", range(2))
    (tmp_path / "webdataset").mkdir()
    for name, of in (("train-0", range(10)), ("train-1", range(10, COUNT)), ("test-0", range(2))):
        with tarfile.open(tmp_path / "webdataset" / f"{name}.tar", "w") as tar:
            for i in of:
                for end, content in (("png", png(i)), ("cls", ("a", "b")[i % 2].encode())):
                    about = tarfile.TarInfo(f"{i:02d}.{end}")
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))
    return tmp_path


def streamed(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    monkeypatch.setenv("SSL_BENCH_MEMORY", "0")
    images = load(f"{kind}:{folder / kind}").train
    assert images.streamed and (kind != "parquet" or images.images.mapped)  # type: ignore[union-attr]
    return images


def joint(images: ImageSet, world: int, workers: int, start: int = 0) -> Iterator[dict[str, Any]]:
    """The batches of all processes together."""
    settings: dict[str, Any] = {"batch_size": BATCH, "steps": STEPS, "seed": 5, "workers": workers}
    loaders = [Loader(images, VIEWS, rank=rank, world=world, **settings) for rank in range(world)]
    for loader in loaders:
        loader.load_state_dict({"step": start})
    for parts in zip(*loaders, strict=True):
        assert len({part["step"] for part in parts}) == 1
        whole = {key: torch.cat([part[key] for part in parts]) for key in ("index", "labels")}
        views = [torch.cat(of_view) for of_view in zip(*(part["views"] for part in parts), strict=True)]
        yield {**whole, "views": views, "step": parts[0]["step"], "state": loaders[0].state_dict()}


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [batch["step"] for batch in found] == [batch["step"] for batch in expected]
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one["index"], two["index"]) and torch.equal(one["labels"], two["labels"])
        assert all(torch.equal(a, b) for a, b in zip(one["views"], two["views"], strict=True))


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_every_number_of_processes_and_workers_sees_the_same(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(joint(load(f"{kind}:{folder / kind}").train, 1, 0))  # held in memory
    assert len({i for batch in expected[:6] for i in batch["index"].tolist()}) == 6 * BATCH
    images = streamed(folder, kind, monkeypatch)
    for world in (1, 2, 4):
        for workers in (0, 2):
            assert_same(list(joint(images, world, workers)), expected)


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_another_number_of_processes_goes_on_within_an_epoch(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = streamed(folder, kind, monkeypatch)
    expected = list(joint(images, 1, 0))
    for before, workers, after in ((1, 0, 4), (2, 2, 1), (4, 0, 2)):
        stream = joint(images, before, workers)
        for _ in range(3):
            state = next(stream)["state"]
        stream.close()
        assert state == {"step": 3}
        assert_same(list(joint(images, after, 2 - workers, state["step"])), expected[3:])


def test_a_process_reads_its_own_images_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = streamed(folder, "parquet", monkeypatch)
    opened: list[int] = []
    usual = Cells.open
    monkeypatch.setattr(Cells, "open", lambda self, index: opened.append(index) or usual(self, index))
    read = []
    for rank in range(2):
        loader = Loader(images, VIEWS, batch_size=BATCH, steps=6, seed=5, rank=rank, world=2, workers=0)
        assert len(list(loader)) == 6
        read.append(set(opened))
        opened.clear()
    assert len(read[0]) == len(read[1]) == 12 and not read[0] & read[1]


def test_parquet_that_does_not_fit_is_mapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = load(f"parquet:{folder / 'parquet'}").train
    images = streamed(folder, "parquet", monkeypatch)
    assert images.fingerprint == held.fingerprint and images.classes == held.classes == ("a", "b")
    assert torch.equal(images.labels, held.labels)
    assert len(pickle.dumps(images.images)) < 2000  # processes map it for themselves
    again = pickle.loads(pickle.dumps(images.subset(torch.tensor([7, 3]), "dev")))
    assert torch.equal(again.images[1], held.images[3])
    copies = sorted((folder / "data" / "arrow").glob("*.arrow"))
    before = [path.stat().st_mtime_ns for path in copies]
    assert len(copies) == 2  # train and test
    streamed(folder, "parquet", monkeypatch)
    assert [path.stat().st_mtime_ns for path in copies] == before
    write_parquet(folder / "parquet" / "train-0.parquet", range(5, 15))
    assert streamed(folder, "parquet", monkeypatch).fingerprint != held.fingerprint
    assert len(list((folder / "data" / "arrow").glob("*.arrow"))) == 2  # the old copy is gone
    assert not [name for name in os.listdir(folder / "data" / "arrow") if name.endswith(".part")]


def test_what_cannot_be_copied_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_BENCH_MEMORY", "0")
    spec = f"parquet:{folder / 'parquet'}"
    with monkeypatch.context() as patch:
        patch.setattr(arrow_files.shutil, "disk_usage", lambda _: type("", (), {"free": 10}))
        with pytest.raises(UserError, match=r"more than fit into memory, and .*data/arrow, .* has 10 free"):
            load(spec)
    write_parquet(folder / "parquet" / "train-1.parquet", range(3), label=[1.5, 2.5, 3.5])
    with pytest.raises(UserError, match=r"columns of .*train-0\.parquet and of .*train-1\.parquet beside it differ"):
        load(spec)
    assert not list((folder / "data" / "arrow").glob("*.a*")) + list((folder / "data" / "arrow").glob(".*.part"))
    (folder / "data" / "arrow" / ".lock").unlink()
    (folder / "data" / "arrow").rmdir()
    (folder / "data" / "arrow").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot copy .*train-0\.parquet and what is beside it to ") as error:
        load(spec)
    assert "\n" not in str(error.value)


def test_training_and_features_do_not_depend_on_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of one size: learning curves with the online k-NN, weights and features are those of held images."""
    for split, count in (("train", 48), ("test", 8)):
        for i in range(count):
            path = tmp_path / "photos" / split / ("a", "b")[i % 2] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 256, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    recipe = load_recipe("dino", str(tiny_recipe("dino")), {"backbone": "vit_nano_patch4_16", "epochs": 1})
    found = []
    for memory in (10**9, 0):
        splits = load(f"folder:{tmp_path / 'photos'}", memory=memory)
        network = load_encoder(run(recipe, splits, tmp_path / str(memory), ("csv",))).encoder
        found.append((FrozenEncoder(network).features(splits.train, ["cls"])["cls"], network.state_dict()))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(value, found[1][1][key]) for key, value in found[0][1].items())
    curves = [(tmp_path / str(memory) / "metrics.csv").read_text() for memory in (10**9, 0)]
    assert curves[0] == curves[1] and "knn" in curves[0]

"""The loader: every step can be rebuilt, by any number of ranks and workers, in any run."""

from __future__ import annotations

import functools
import io
import operator
import os
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor

from ssl_bench.data import loader as loader_module
from ssl_bench.data.datasets import ImageSet, load
from ssl_bench.data.images import pack
from ssl_bench.data.loader import Loader
from ssl_bench.evaluations.dense import common_size
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.views.view import View

VIEWS = [View(size=8, count=2), View(size=4, scale=(0.1, 0.4))]


def made(count: int, ragged: bool = False) -> ImageSet:
    """Image i is filled with the number i."""
    images = [torch.full((3, 8, 8 + (i % 3 if ragged else 0)), i, dtype=torch.uint8) for i in range(count)]
    return ImageSet("made", "train", torch.arange(count) % 10, tuple("0123456789"), "ab" * 32, pack(images))


def noise(count: int) -> ImageSet:
    """Ragged images of random pixels."""
    random = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, 12, 10 + i % 4), generator=random, dtype=torch.uint8) for i in range(count)]
    return ImageSet("noise", "train", torch.arange(count) % 10, tuple("0123456789"), "ab" * 32, pack(images))


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    assert one.keys() == two.keys()
    flat = [[*batch.get("views", []), *(v for v in batch.values() if isinstance(v, Tensor))] for batch in (one, two)]
    return one["step"] == two["step"] and all(torch.equal(a, b) for a, b in zip(*flat, strict=True))


def test_batches_hold_the_images_they_name() -> None:
    batches = list(Loader(made(50), None, batch_size=8, steps=20, seed=3))
    assert [batch["step"] for batch in batches] == list(range(20))
    for batch in batches:
        assert batch["images"].shape == (8, 3, 8, 8)
        assert batch["images"].dtype == torch.uint8
        assert torch.equal(batch["images"][:, 0, 0, 0].long(), batch["index"])
        assert torch.equal(batch["labels"], batch["index"] % 10)


def test_an_epoch_repeats_no_image_and_the_next_has_another_order() -> None:
    loader = Loader(made(50), None, batch_size=8, steps=13, seed=3)
    assert len(loader) == 13
    index = [batch["index"].tolist() for batch in loader]
    first, second = functools.reduce(operator.iadd, index[:6], []), functools.reduce(operator.iadd, index[6:12], [])
    assert len(set(first)) == len(set(second)) == 48  # 50 images, the last 2 of each epoch fill no batch
    assert first != second
    assert first != sorted(first)
    seen = {
        i for epoch in range(30) for i in Loader(made(50), None, batch_size=50, steps=1, seed=epoch).indices(0).tolist()
    }
    assert seen == set(range(50))


@pytest.mark.parametrize("ahead", [2**33, 1])
@pytest.mark.parametrize(("make", "count"), [(made, 50), (noise, 50), (noise, 49)])
def test_what_fills_no_batch_is_a_smaller_one_where_asked(
    make: Any, count: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded images, and views that workers cut whole or image by image."""
    monkeypatch.setattr(loader_module, "MOST_AHEAD", ahead)
    loader = Loader(make(count), VIEWS, batch_size=8, steps=14, seed=3, workers=0, drop_last=False)
    assert (loader._pixels is None) == (make is noise)
    found = list(loader)
    assert [len(batch["index"]) for batch in found] == 2 * [8, 8, 8, 8, 8, 8, count - 48]
    assert all(len(view) == len(batch["labels"]) for batch in found for view in batch.get("views", []))
    for epoch in (found[:7], found[7:]):
        assert sorted(torch.cat([batch["index"] for batch in epoch]).tolist()) == list(range(count))
    dropped = list(Loader(make(count), VIEWS, batch_size=8, steps=12, seed=3, workers=0))
    assert all(torch.equal(a["index"], b["index"]) for a, b in zip(found[:6] + found[7:13], dropped, strict=True))
    resumed = Loader(make(count), VIEWS, batch_size=8, steps=14, seed=3, workers=0, drop_last=False)
    resumed.load_state_dict({"step": 6})
    assert all(same(a, b) for a, b in zip(resumed, found[6:], strict=True))


def test_same_seed_same_batches() -> None:
    def index(seed: int) -> list[list[int]]:
        return [batch["index"].tolist() for batch in Loader(made(50), None, batch_size=8, steps=9, seed=seed)]

    assert index(1) == index(1) != index(2)


def test_ranks_together_get_the_batch_of_one_process() -> None:
    whole = list(Loader(made(50), None, batch_size=12, steps=9, seed=0))
    ranks = [list(Loader(made(50), None, batch_size=12, steps=9, seed=0, rank=rank, world=3)) for rank in range(3)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([ranks[rank][step]["images"] for rank in range(3)]), batch["images"])


def test_ranks_cut_the_views_of_one_process() -> None:
    whole = list(Loader(noise(20), VIEWS, batch_size=4, steps=3, seed=0, workers=0))
    ranks = [
        list(Loader(noise(20), VIEWS, batch_size=4, steps=3, seed=0, rank=r, world=2, workers=0)) for r in range(2)
    ]
    for step, batch in enumerate(whole):
        for view, expected in enumerate(batch["views"]):
            assert torch.equal(torch.cat([ranks[rank][step]["views"][view] for rank in range(2)]), expected)


@pytest.mark.parametrize("make", [made, noise])
def test_resume_continues_with_the_next_batch(make: Any) -> None:
    def fresh() -> Loader:
        return Loader(make(20), VIEWS, batch_size=4, steps=12, seed=0, workers=0)

    whole = list(fresh())
    stopped = fresh()
    batches = iter(stopped)
    for _ in range(7):
        next(batches)
    state = stopped.state_dict()
    assert state == {"step": 7}
    resumed = fresh()
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(rest) == 5
    assert all(same(a, b) for a, b in zip(rest, whole[7:], strict=True))
    assert list(resumed) == []  # the run is over


def test_workers_change_nothing_and_prefetch_no_state() -> None:
    runs = [list(Loader(noise(20), VIEWS, batch_size=4, steps=6, seed=0, workers=workers)) for workers in (0, 1, 3)]
    views = runs[0][0]["views"]
    assert [tuple(view.shape) for view in views] == [(4, 3, 8, 8), (4, 3, 8, 8), (4, 3, 4, 4)]
    assert views[0].dtype == torch.float32
    assert not torch.equal(views[0], views[1])
    assert torch.equal(runs[0][0]["labels"], runs[0][0]["index"] % 10)
    for run in runs[1:]:
        assert all(same(a, b) for a, b in zip(run, runs[0], strict=True))
    loader = Loader(noise(20), VIEWS, batch_size=4, steps=6, seed=0, workers=2)
    batches = iter(loader)
    next(batches)
    assert loader.state_dict() == {"step": 1}
    batches.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("piece", [1, 3, 4])
def test_workers_cut_large_batches_in_pieces(monkeypatch: pytest.MonkeyPatch, workers: int, piece: int) -> None:
    """At 224 px a batch of 16,384 is 10 GB, and a loader of torch holds two of them ready for every worker."""
    settings: dict[str, Any] = {"batch_size": 8, "steps": 3, "seed": 0, "rank": 1, "world": 2}
    whole = list(Loader(noise(20), VIEWS, workers=0, **settings))
    image = 4 * 3 * (2 * 8 * 8 + 4 * 4)
    monkeypatch.setattr(loader_module, "MOST_AHEAD", piece * image * 2 * max(1, workers))
    loader = Loader(noise(20), VIEWS, workers=workers, **settings)
    assert max(map(len, loader._jobs())) == piece
    assert all(same(a, b) for a, b in zip(loader, whole, strict=True))


def test_views_differ_between_steps_positions_and_seeds() -> None:
    one = made(4, ragged=True)
    pixels = noise(1).images[0]
    equal = ImageSet(
        "equal", "train", one.labels, one.classes, "ab" * 32, pack([pixels, pixels, pixels, pixels[:, :-1]])
    )
    crops = {
        tuple(view.flatten().tolist())
        for seed in (0, 1)
        for batch in Loader(equal, VIEWS[:1], batch_size=4, steps=2, seed=seed, workers=0)
        for view in batch["views"][0]
    }
    assert len(crops) == 16


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"batch_size": 64}, "batch_size 64 .* 50 train images"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 8, "world": 3}, "batch_size 8 .* 3 processes"),
        ({"batch_size": 8, "seed": -1}, "seed -1"),
    ],
)
def test_mistakes(keywords: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Loader(made(50), None, **{"steps": 1, "seed": 0, **keywords})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 12), ("test", 1)):
        for i in range(count):
            file = io.BytesIO()
            pixels = np.random.default_rng(i).integers(0, 256, (12, 10 + i % 3, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, "PNG")
            path = tmp_path / split / "a" / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.getvalue())
    return tmp_path


def test_streamed_and_held_images_give_the_same_views(folder: Path) -> None:
    held, streamed = load(f"folder:{folder}").train, load(f"folder:{folder}", memory=0).train
    assert streamed.streamed
    assert not held.streamed
    runs = [list(Loader(s, VIEWS, batch_size=4, steps=4, seed=0, workers=2)) for s in (held, streamed)]
    assert all(same(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(("workers", "ahead"), [(0, 2**33), (2, 2**33), (2, 3000)])
def test_images_of_one_size_are_streamed_as_they_are_held(
    tmp_path: Path, workers: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that all views of a batch are drawn together, by the same numbers and the same code."""
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # stored as 9 x 16, shown as 16 x 9
    for i in range(26):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 16, 3) if i % 2 else (16, 9, 3), dtype=np.uint8)
        path = tmp_path / ("train" if i < 24 else "test") / "ab"[i // 2 % 2] / f"{i:02d}.{('png', 'jpg')[i // 4 % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **({} if i % 2 else {"exif": turned}))
    held, streamed = load(f"folder:{tmp_path}").train, load(f"folder:{tmp_path}", memory=0).train
    assert held.sides == streamed.sides == streamed.subset(torch.tensor([1, 2]), "dev").sides == (9, 16)
    assert streamed.streamed and not held.streamed and common_size(streamed) == (9, 16)
    monkeypatch.setattr(loader_module, "MOST_AHEAD", ahead)
    settings: dict[str, Any] = {"batch_size": 6, "steps": 7, "seed": 3, "world": 2, "workers": workers}
    for rank in (0, 1):
        runs = [list(Loader(s, VIEWS, rank=rank, **settings)) for s in (held, streamed)]
        assert "images" in runs[1][0] and all(same(a, b) for a, b in zip(*runs, strict=True))
    whole = {**settings, "world": 1, "drop_last": False}
    assert all(same(a, b) for a, b in zip(*(Loader(s, VIEWS, **whole) for s in (held, streamed)), strict=True))
    coloured = [View(size=8, augment=_as_it_is)]
    runs = [list(Loader(s, coloured, **settings)) for s in (held, streamed)]
    assert "views" in runs[1][0] and all(same(a, b) for a, b in zip(*runs, strict=True))
    changed = next((tmp_path / "train").rglob("05.*"))
    Image.new("RGB", (4, 3)).save(changed)
    with pytest.raises(RunError, match=r"image .*05\.jpg has changed: 4 x 3 pixels, not 16 x 9"):
        list(Loader(streamed, VIEWS, **settings))


def _as_it_is(image: Tensor) -> Tensor:
    return image


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_stays_one_line(folder: Path, workers: int) -> None:
    train = load(f"folder:{folder}", memory=0).train
    (folder / "train" / "a" / "03.png").write_bytes(b"overwritten")
    with pytest.raises(RunError) as error:
        list(Loader(train, VIEWS, batch_size=4, steps=3, seed=0, workers=workers))
    assert str(error.value).startswith("cannot read image ")
    assert "03.png" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_killed_worker_is_a_run_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "view_images", lambda *arguments: os._exit(1))
    with pytest.raises(RunError, match="loader worker ended"):
        list(Loader(noise(20), VIEWS, batch_size=4, steps=3, seed=0, workers=1))


class Recorder(lightning.LightningModule):
    """Records the images it is given; its one weight depends on all of them, in order."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.stop_at = stop_at
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        assert batch["step"] == self.global_step == batch_idx
        if batch["step"] == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(batch["index"].tolist())
        return self.weight * batch["images"].float().mean() / 50

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def test_lightning_resumes_a_killed_run_at_the_exact_batch(tmp_path: Path) -> None:
    def fit(model: Recorder, resume: bool = False) -> None:
        checkpoint = lightning.pytorch.callbacks.ModelCheckpoint(
            tmp_path / "run", filename="last", every_n_train_steps=3, enable_version_counter=False
        )
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", callbacks=[checkpoint], logger=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        loader = Loader(made(20), None, batch_size=4, steps=12, seed=0)
        trainer.fit(model, loader, ckpt_path=tmp_path / "run" / "last.ckpt" if resume else None)

    whole = Recorder()
    fit(whole)
    assert len(whole.seen) == 12
    killed = Recorder(stop_at=8)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(killed)
    resumed = Recorder()
    fit(resumed, resume=True)
    assert resumed.seen == whole.seen[6:]
    assert torch.equal(resumed.weight, whole.weight)

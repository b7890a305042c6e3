"""Detection: perfect and empty detectors, maps of every family, a training that learns, rows, and mistakes."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import NANO
from torch import Tensor
from two_processes import in_two

from ssl_bench.backbones import build_backbone
from ssl_bench.checkpoints.encoder_file import Checkpoint
from ssl_bench.commands.check import check
from ssl_bench.commands.compare import compare
from ssl_bench.commands.evaluate import run_evaluations
from ssl_bench.data.datasets import ImageSet, Splits, hold_out
from ssl_bench.data.targets import Objects, Targets
from ssl_bench.evaluations.evaluator import Data
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.evaluations.trained.detection import Detection, compared
from ssl_bench.evaluations.trained.detector import detector
from ssl_bench.metrics.detection import AREAS
from ssl_bench.results.rows.predictions import read_predictions
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.seeds import step_seed
from ssl_bench.views.execution import seeded

FAST: dict[str, Any] = {
    **{"steps": 60, "warmup": 5, "batch_size": 8, "lr": 5e-3, "weight_decay": 0.0, "short_side": 32, "long_side": 32},
    **{"channels": 16, "hidden": 32, "mask_layers": 1, "proposals": 30, "sampled": 16},
}
NAMES = ("background", "red", "green")


def squares(n: int, split: str, seed: int) -> ImageSet:
    """Images of 32 px with one or two squares of 12 px, red or green, that don't overlap."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 30, (n, 3, 32, 32), dtype=np.uint8)
    masks, instances = np.zeros((n, 32, 32), np.uint8), np.zeros((n, 32, 32), np.uint8)
    for i in range(n):
        for k in range(random.integers(1, 3)):
            y, x, label = random.integers(0, 20), 16 * k + random.integers(0, 4), random.integers(1, 3)
            at = (i, slice(y, y + 12), slice(x, x + 12))
            images[at[0], label - 1, at[1], at[2]] = 220
            masks[at], instances[at] = label, k + 1
    targets = Targets(NAMES, torch.from_numpy(masks), torch.from_numpy(instances))
    labels = torch.zeros(n, dtype=torch.int64)
    return ImageSet("squares", split, labels, (), f"{seed + n:064x}", torch.from_numpy(images), targets=targets)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Splits(squares(64, "train", 0), squares(24, "test", 1))


@pytest.fixture(scope="module")
def data(splits: Splits) -> Data:
    return Data(splits.train, *hold_out(splits.train), splits.test)


def encoder(name: str = "vit_nano_patch4_32") -> FrozenEncoder:
    torch.manual_seed(0)
    return FrozenEncoder(build_backbone(name))


def perfect(objects: Objects) -> dict[str, Tensor]:
    found = {"boxes": objects.boxes, "labels": objects.labels, "masks": objects.masks}
    return {**found, "scores": torch.ones(len(objects.labels))}


def test_the_truth_is_all_right_and_nothing_is_nothing(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Detection, "_train", lambda *_: 0.0)
    assert data.test.targets is not None
    truth = [perfect(data.test.targets.objects(i)) for i in range(len(data.test))]
    monkeypatch.setattr(Detection, "predict", lambda *_: iter(truth))
    result = Detection(**FAST).run(encoder(), data)
    assert {metric.value for metric in result.metrics.values()} == {100}
    assert {"ap", "ap50", "ap75", "mask_ap", "mask_ap50", "ap_small"} <= set(result.metrics)
    assert result.correct.shape == (24, 1) and np.allclose(result.correct, 1)
    none = {key: value[:0] for key, value in truth[0].items()}
    monkeypatch.setattr(Detection, "predict", lambda *_: iter([none] * 24))
    assert Detection(**FAST).run(encoder(), data).metrics["ap"].value == 0


@pytest.mark.parametrize("frozen", [True, False])
def test_it_learns_and_leaves_a_frozen_encoder_alone(data: Data, frozen: bool) -> None:
    given = encoder()
    before = {key: value.clone() for key, value in given.encoder.state_dict().items()}
    result = Detection(**FAST, frozen=frozen).run(given, data)
    assert result.metrics["ap50"].value > 15
    assert result.metrics["mask_ap50"].value > 5
    assert result.metrics["ap"].low < result.metrics["ap"].value < result.metrics["ap"].high
    assert 100 * result.correct.mean() == pytest.approx(result.metrics["ap"].value)
    assert all(torch.equal(value, given.encoder.state_dict()[key]) for key, value in before.items())
    weights = sum(p.numel() for p in given.encoder.parameters())
    few = Detection(**{**FAST, "steps": 1}, frozen=not frozen).run(given, data)
    difference = int(result.chosen["trained_parameters"]) - int(few.chosen["trained_parameters"])  # type: ignore[call-overload]
    assert difference == (-weights if frozen else weights)


def test_twice_is_the_same(data: Data) -> None:
    first, second = (Detection(**{**FAST, "steps": 8}).run(encoder(), data) for _ in range(2))
    assert first.metrics == second.metrics and np.array_equal(first.correct, second.correct)


NETWORKS = ["vit_nano_patch4_32", "eva02_nano_patch4_32", "swin_nano_patch2_window2_32", "hiera_nano_32", "pixels_32"]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("side", [32, 64])
def test_maps_of_every_family(name: str, side: int) -> None:
    """Each half as fine as the one before, over the whole image; larger images are seen as a whole or in tiles."""
    network = build_backbone(name)
    settings = {key: FAST[key] for key in ("channels", "hidden", "mask_layers", "proposals", "sampled")}
    model = detector(network, 3, frozen=True, sides=(side, side), **settings).eval()
    maps = list(model.backbone(torch.randn(2, 3, side, side)).values())  # type: ignore[operator]
    assert all(each.shape[:2] == (2, 16) for each in maps)
    strides: Any = model.backbone.strides  # type: ignore[union-attr]
    for each, stride in zip(maps[:-1], strides, strict=True):
        assert each.shape[2] == side / stride
    assert all(b == 2 * a for a, b in itertools.pairwise(strides))
    anchors = model.rpn.anchor_generator.sizes  # type: ignore[union-attr]
    assert [size for (size,) in anchors] == [8 * stride for stride in (*strides, 2 * strides[-1])]
    with torch.no_grad():
        (found,) = model([torch.rand(3, side, side)])
    assert found["masks"].shape[1:] == (1, side, side)


def test_anchors_and_sizes_of_vitdet() -> None:
    """One size a level, of 8 strides: 32 at stride 4 to 512 at 64; images of 800 x 1333 pixels, 256 channels."""
    own = {key: getattr(Detection(), key) for key in ("channels", "hidden", "mask_layers", "proposals", "sampled")}
    sides = (Detection().short_side, Detection().long_side)
    model: Any = detector(build_backbone("vit_nano_patch16_224"), 81, frozen=False, sides=sides, **own)
    assert [size for (size,) in model.rpn.anchor_generator.sizes] == [32, 64, 128, 256, 512]
    assert set(model.rpn.anchor_generator.aspect_ratios) == {(0.5, 1.0, 2.0)}
    assert (model.transform.min_size, model.transform.max_size) == ((800,), 1333)
    assert model.backbone.out_channels == 256 and model.roi_heads.box_predictor.cls_score.out_features == 81


def test_how_large_an_object_is_the_ground_truth_says() -> None:
    """Of a box of 40 x 40 whose outline has 900 pixels, fewer than 32 x 32: small, as in pycocotools."""
    box, label = torch.tensor([[0.0, 0.0, 40.0, 40.0]]), torch.tensor([1])
    truth = Objects(box, label, torch.ones(1, 40, 40).bool(), torch.tensor([False]))
    found = {"boxes": box, "labels": label, "scores": torch.tensor([0.9])}
    for stated, size in ((None, "medium"), (torch.tensor([900.0]), "small")):
        (one,) = compared(0, found, truth._replace(areas=stated), "boxes")
        assert [name for name, count in zip(AREAS, one.truths, strict=True) if count] == ["all", size]


def test_boxes_turn_with_their_images(data: Data) -> None:
    from ssl_bench.evaluations.trained.detection import _example

    (image, truth), (turned, other) = (_example(data.train, 3, turn) for turn in (False, True))
    assert torch.equal(image.flip(-1), turned)
    for (x0, y0, x1, y1), mask in zip(other["boxes"].int().tolist(), other["masks"], strict=True):
        assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0
    assert torch.equal(truth["labels"], other["labels"])


def test_rows_and_paired_tests(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    made = {"detection": Detection(**{**FAST, "steps": 30})}
    rows = []
    for method, name in (("a", "vit_nano_patch4_32"), ("b", "pixels_32")):
        checkpoint = Checkpoint(build_backbone(name), method, {}, 2 * method * 32)
        rows += run_evaluations(checkpoint, made, splits, tmp_path, None)
    assert [row["task"] for row in rows] == ["detection"] * 2
    for row in rows:
        assert row["picture"]["columns"] == ["image", "true boxes", "predicted boxes of a score above 0.3"]
        found = read_predictions(row)
        assert found is not None
        assert 100 * found.mean() == pytest.approx(row["metrics"]["ap"]["value"], abs=0.05)
    lines: list[str] = []
    assert check(tmp_path, show=lines.append) == []
    compare(str(rows[0].path), str(rows[1].path), show=lines.append)
    assert "paired" in "".join(lines)


def test_mistakes_are_one_line(data: Data) -> None:
    with pytest.raises(UserError, match="short_side is 64, more than long_side, 32"):
        Detection(short_side=64, long_side=32)
    with pytest.raises(UserError, match="detection: pixels_32 has nothing to train"):
        Detection(**FAST, frozen=False).run(encoder("pixels_32"), data)


def test_objects_of_scenes_are_those_of_their_maps(data: Data) -> None:
    assert data.train.targets is not None
    for i in range(10):
        objects = data.train.targets.objects(i)
        assert torch.equal(objects.masks.any(0), data.train.targets.instance(i) > 0)
        assert objects.masks.sum((1, 2)).tolist() == [144] * len(objects.labels)
        assert (objects.boxes[:, 2:] - objects.boxes[:, :2] == 12).all()


def test_other_sizes_of_one_size_backbones_are_refused(data: Data) -> None:
    assert NANO  # sizes for tests are registered
    images = squares(8, "train", 3)
    small = ImageSet("small", "train", images.labels, (), "0" * 64, images.images[:, :, :24, :24], targets=Targets(
        NAMES, images.targets.masks[:, :24, :24], images.targets.instances[:, :24, :24]))  # type: ignore[index,union-attr]  # fmt: skip
    result = Detection(**{**FAST, "steps": 1, "batch_size": 2, "short_side": 24}).run(
        encoder("hiera_nano_32"), Data(small, *hold_out(small, 0.25), small)
    )
    assert "ap" in result.metrics  # padded to a tile


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_two_processes_learn_each_from_its_half_of_the_batch(data: Data, tmp_path: Path) -> None:
    """The mean of the losses of both halves, each with anchors and proposals of its own draw."""
    evaluator = Detection(**{**FAST, "steps": 3, "frozen": False, "drop_path": 0.0})

    def fit(rank: int) -> None:
        torch.save(evaluator.fit(encoder(), data.train)[0].state_dict(), tmp_path / f"{rank}.pt")

    in_two(fit, group=True)
    model, steps = None, itertools.count()

    def halves(pictures: list[Tensor], truths: list[Any]) -> dict[str, Tensor]:
        assert model is not None
        found, step = [], next(steps)
        for rank, half in enumerate((slice(0, 4), slice(4, 8))):
            with seeded(step_seed(evaluator.seed, step, rank)):
                found.append(type(model).forward(model, pictures[half], truths[half]))
        return {name: (found[0][name] + found[1][name]) / 2 for name in found[0]}

    with pytest.MonkeyPatch.context() as patch:
        usual = Detection._train

        def train(self: Detection, of: Any, images: ImageSet) -> float:
            nonlocal model
            model, of.forward = of, halves
            return usual(self, of, images)

        patch.setattr(Detection, "_train", train)
        expected = evaluator.fit(encoder(), data.train)[0].state_dict()
    two = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, weight in expected.items():
        assert torch.equal(two[0][name], two[1][name]), name
        torch.testing.assert_close(two[0][name], weight, rtol=1e-3, atol=1e-4)
    with pytest.raises(AssertionError):  # a batch of 7 has no halves
        in_two(lambda rank: Detection(**{**FAST, "batch_size": 7}).fit(encoder(), data.train), group=True)

"""Segmentation on frozen maps: worked numbers, perfect and meaningless features, rows; every backbone's maps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import NANO
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.backbones import build_backbone
from ssl_bench.backbones.vit import ViT
from ssl_bench.checkpoints.encoder_file import Checkpoint
from ssl_bench.commands.check import check
from ssl_bench.commands.compare import compare
from ssl_bench.commands.evaluate import run_evaluations
from ssl_bench.commands.leaderboard import leaderboard
from ssl_bench.data.datasets import ImageSet, Splits, hold_out
from ssl_bench.data.targets import Targets
from ssl_bench.evaluations import dense
from ssl_bench.evaluations.dense import feature_map, patch_classes, resized_mask
from ssl_bench.evaluations.evaluator import Data, Evaluator, Result
from ssl_bench.evaluations.frozen import segmentation_knn
from ssl_bench.evaluations.frozen.patch_linear import PatchLinear
from ssl_bench.evaluations.frozen.segmentation_knn import SegmentationKNN, look_up, rare_first
from ssl_bench.evaluations.frozen.segmentation_linear import SegmentationLinear, distorted
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.metrics.ratios import ratio
from ssl_bench.results.rows.picture import read_picture
from ssl_bench.utils.errors import RunError, UserError

NAMES = ("none", "a", "b", "c")
FAST = {"steps": 150, "warmup": 5, "batch_size": 4, "crop": 8, "stride": 5, "lr": 0.05, "scale": (1.0, 1.0)}


def squares(n: int, split: str, seed: int) -> ImageSet:
    """Images of 8 px with three squares of classes 1 to 3, which the red channel shows; some pixels have no class."""
    random = np.random.default_rng(seed)
    masks = np.zeros((n, 8, 8), np.uint8)
    for mask in masks:
        for label in random.permutation([1, 2, 3]):
            y, x = random.integers(0, 6, 2)
            mask[y : y + 3, x : x + 3] = label
    images = np.zeros((n, 3, 8, 8), np.uint8)
    images[:, 0] = 60 * masks
    masks[random.random(masks.shape) < 0.02] = 255
    targets = Targets(NAMES, torch.from_numpy(masks), torch.from_numpy(np.where(masks == 255, 0, masks)))
    labels = torch.zeros(n, dtype=torch.int64)
    return ImageSet("squares", split, labels, (), f"{seed + n:064x}", torch.from_numpy(images), targets=targets)


@pytest.fixture(scope="module")
def data() -> Data:
    train = squares(40, "train", 0)
    return Data(train, *hold_out(train), squares(30, "test", 1))


class Maps:
    """A token for every pixel: its class one-hot, or nothing but noise."""

    def __init__(self, perfect: bool) -> None:
        self.perfect, self.generator = perfect, torch.Generator().manual_seed(0)

    def map_of(self, images: Tensor, blocks: Sequence[int] = ()) -> Tensor:
        red = images[:, 0].float() / 60
        seen = red.round().long().clamp(max=3)
        shape = (len(images), 16, *images.shape[2:])
        noise = torch.randn(shape, generator=self.generator)
        return F.one_hot(seen, 4).permute(0, 3, 1, 2).float() if self.perfect else noise


EVALUATORS = [SegmentationKNN(memory=400), PatchLinear(), SegmentationLinear(**FAST)]


@pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda each: type(each).__name__)
def test_perfect_features_are_all_right_and_noise_is_chance(evaluator: Evaluator, data: Data) -> None:
    if isinstance(evaluator, SegmentationLinear):  # colours are what the classes are
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ssl_bench.evaluations.frozen.segmentation_linear.distorted", lambda image, _: image)
            result = evaluator.run(Maps(True), data)  # type: ignore[arg-type]
    else:
        result = evaluator.run(Maps(True), data)  # type: ignore[arg-type]
    assert {metric.value for metric in result.metrics.values()} == {100}
    assert set(result.metrics) == {"miou", "mean_accuracy", "pixel_accuracy", *(f"iou/{name}" for name in NAMES)}
    chance = evaluator.run(Maps(False), data)  # type: ignore[arg-type]
    assert chance.metrics["miou"].value < 25
    assert 100 * ratio(chance.correct) == pytest.approx(chance.metrics["miou"].value)
    assert chance.correct.shape == (30, 4, 2)
    json.dumps(chance.chosen)


def same(a: Result, b: Result) -> bool:
    return a.metrics == b.metrics and np.array_equal(a.correct, b.correct)


@pytest.mark.parametrize("evaluator", EVALUATORS[:2], ids=lambda each: type(each).__name__)
def test_chunks_do_not_show(evaluator: Evaluator, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    class Coarse(Maps):
        def map_of(self, images: Tensor, blocks: Sequence[int] = ()) -> Tensor:
            return F.avg_pool2d(super().map_of(images), 2)

    whole = evaluator.run(Coarse(True), data)  # type: ignore[arg-type]
    assert 30 < whole.metrics["miou"].value < 100
    monkeypatch.setattr(dense, "PIXELS_PER_BATCH", 7 * 64)
    monkeypatch.setattr(segmentation_knn, "GATHERED", 1)
    monkeypatch.setattr("ssl_bench.evaluations.solvers.neighbours.QUERIES_PER_BLOCK", 50)
    assert same(evaluator.run(Coarse(True), data), whole)  # type: ignore[arg-type]


def test_the_official_attention_step() -> None:
    """open-hummingbird-eval on literal inputs."""
    neighbours = F.normalize(torch.tensor([[2.0, 4.0], [1.0, 0.0], [1.0, 1.0]]), dim=1)
    similarity = F.normalize(torch.tensor([[1.0, 2.0]]), dim=1) @ neighbours.T
    shares = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    at = torch.arange(3)[None]
    assert look_up(similarity, at, shares, 0.02)[0].tolist() == pytest.approx([0.964315, 0.035685], abs=1e-6)
    assert look_up(similarity, at, shares, 0.5)[0].tolist() == pytest.approx([0.649762, 0.350238], abs=1e-6)


def test_the_memory_is_bounded_and_holds_rare_classes(data: Data) -> None:
    for memory, expected in ((400, 400), (7, 7), (100_000, 40 * 64)):
        result = SegmentationKNN(memory=memory).run(Maps(True), data)  # type: ignore[arg-type]
        assert result.chosen["memory"] == expected
    shares = F.one_hot(torch.tensor([0] * 90 + [1] * 10)).float()
    taken = torch.cat([rare_first(shares, 10, torch.Generator().manual_seed(seed)) for seed in range(100)])
    assert (taken >= 90).float().mean() > 0.4  # a tenth of the patches: 90 patches of score 90 u, 10 of 10 u
    assert len(rare_first(shares, 1000, torch.Generator())) == 100


FILLED_ONCE = """
import torch
from ssl_bench.data.datasets import ImageSet
from ssl_bench.data.targets import Targets
from ssl_bench.evaluations import dense
from ssl_bench.evaluations.frozen.segmentation_knn import SegmentationKNN
from ssl_bench.training.compute import peak_memory, reset_peak_memory

torch.set_num_threads(1)
dense.PIXELS_PER_BATCH = 4 * 32 * 32

class Maps:
    def map_of(self, images, blocks=()):
        return torch.rand(1, 1024, 1, 1).expand(len(images), 1024, 16, 16) + torch.rand(len(images), 1, 16, 16)

def images(n):
    masks = torch.randint(0, 21, (n, 32, 32), dtype=torch.uint8)
    pixels, targets = torch.zeros(n, 3, 32, 32, dtype=torch.uint8), Targets(tuple(map(str, range(21))), masks)
    return ImageSet("made", "train", torch.zeros(n, dtype=torch.int64), (), "0" * 64, pixels, targets=targets)

made, few, many, cpu = SegmentationKNN(memory=40_000), images(4), images(160), torch.device("cpu")
made.fill(Maps(), few, (32, 32))  # what is loaded and reserved once
reset_peak_memory(cpu)
before = peak_memory(cpu)
tokens, shares = made.fill(Maps(), many, (32, 32))
print(peak_memory(cpu) - before, tokens.nbytes + shares.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is Linux's")
@pytest.mark.slow
def test_the_memory_is_held_once_while_it_is_filled() -> None:
    """M x (D + C) numbers and the maps of a batch; in a process of its own, whose peak nothing else has raised."""
    done = subprocess.run([sys.executable, "-c", FILLED_ONCE], check=True, capture_output=True, text=True)
    grown, held = map(int, done.stdout.split())
    assert held == 4 * 40_000 * (1024 + 21)
    assert grown < held + 2**25


def test_classes_of_patches_against_brute_force() -> None:
    mask = torch.randint(0, 5, (6, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mask[mask == 4] = 255
    for ignore_as in (None, 0):
        found = patch_classes(mask, (2, 3), 4, ignore_as)
        for row in range(2):
            for column in range(3):
                cell = mask[3 * row : 3 * row + 3, 3 * column : 3 * column + 3].flatten().tolist()
                cell = [ignore_as if value == 255 else value for value in cell]
                assert found[3 * row + column].tolist() == pytest.approx([cell.count(c) / 9 for c in range(4)])


def test_masks_are_resized_without_new_numbers() -> None:
    mask = torch.tensor([[0, 255], [7, 3]], dtype=torch.uint8)
    assert resized_mask(mask, (4, 4)).tolist() == [[0, 0, 255, 255]] * 2 + [[7, 7, 3, 3]] * 2
    assert set(resized_mask(mask, (7, 5)).unique().tolist()) == {0, 3, 7, 255}


# Maps of every backbone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        (NANO, (24, 32), (24, 6, 8)),
        (NANO, (18, 16), (24, 5, 4)),  # padded
        ("eva02_nano_patch4_16", (24, 16), (24, 6, 4)),
        ("swin_nano_patch2_window2_16", (32, 16), (24, 8, 4)),
        ("hiera_nano_32", (64, 32), (24, 8, 4)),
        ("igpt_nano_patch4_16", (32, 16), (24, 8, 4)),
        ("pixels_16", (32, 16), (192, 4, 2)),
        ("timm:test_resnet_64", (64, 96), (96, 2, 3)),
    ],
)
@torch.no_grad()
def test_maps(name: str, size: tuple[int, int], shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    network = build_backbone(name).eval()
    images = torch.randn(2, 3, *size)
    found = feature_map(network, images)
    assert found.shape == (2, *shape)
    own = network.image_size
    if not network.multi_crop:  # tiles: each part as if it were alone
        rows = own[0] * shape[1] // size[0]
        torch.testing.assert_close(found[:, :, :rows], feature_map(network, images[:, :, : own[0]]))
        torch.testing.assert_close(found[:, :, -rows:], feature_map(network, images[:, :, -own[0] :]))
    elif name == NANO and size == (24, 32):
        torch.testing.assert_close(found.flatten(2).mT, network(images).patches)


@torch.no_grad()
def test_patches_of_14_see_518_pixels_of_crops_of_512() -> None:
    """DINOv2's padding: 6 pixels more, half of them on each side; 37 x 37 tokens, where patches of 16 give 32 x 32."""
    pixels = torch.rand(1, 3, 512, 512) + 0.1
    for patch, grid, sees in ((14, 37, 518), (16, 32, 512)):
        network = ViT(f"vit_nano_patch{patch}_224").eval()
        seen: list[Tensor] = []
        network.patch_embed.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        assert feature_map(network, pixels).shape[2:] == (grid, grid)
        (given,) = seen
        border = (sees - 512) // 2
        assert given.shape[2:] == (sees, sees) and torch.equal(given, F.pad(pixels, [border] * 4))


@torch.no_grad()
def test_maps_of_blocks_are_concatenated() -> None:
    network = build_backbone(NANO).eval()
    images = torch.randn(1, 3, 16, 16)
    both = feature_map(network, images, (1, 2))
    first, last = network.feature_maps(images, (1, 2))
    torch.testing.assert_close(both, torch.cat([first, last], dim=1))
    torch.testing.assert_close(last, feature_map(network, images))


def test_what_has_no_map_is_refused() -> None:
    with pytest.raises(UserError, match="Linear gives one vector an image"):
        feature_map(torch.nn.Linear(1, 1), torch.zeros(1, 3, 16, 16))
    with pytest.raises(UserError, match=r"hiera_nano_32 takes images of 32 x 32 pixels alone: 48 x 32 are no tiles"):
        feature_map(build_backbone("hiera_nano_32"), torch.zeros(1, 3, 48, 32))


def test_the_frozen_encoder_gives_the_same_maps() -> None:
    torch.manual_seed(0)
    network = build_backbone(NANO)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    found = FrozenEncoder(network).map_of(images)
    pixels = (images.float() / 255 - torch.tensor(network.mean).view(3, 1, 1)) / torch.tensor(network.std).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(found, feature_map(network.eval(), pixels), atol=0.05, rtol=0.05)  # bf16 there


# The papers' head -----------------------------------------------------------------------------------------------------


def test_crops_are_a_function_of_seed_and_step(data: Data) -> None:
    made = SegmentationLinear(**FAST | {"steps": 3, "scale": (0.5, 2.0)})
    first, again = (list(made.batches(data.train)) for _ in range(2))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert first[0][0].shape == (4, 3, 8, 8) and first[0][1].shape == (4, 8, 8)
    assert not torch.equal(first[0][0], first[1][0])
    padded = torch.stack([mask for _, masks in first for mask in masks]) == 255
    assert padded.flatten(1).float().mean(1).max() > 0.2  # of small factors


def test_colours_are_distorted_by_an_even_chance_each() -> None:
    image = torch.randint(50, 200, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = [distorted(image, np.random.default_rng(seed)) for seed in range(200)]
    same_as_before = np.mean([(each.int() - image.int()).abs().max() <= 1 for each in found])
    assert 0.01 < same_as_before < 0.15  # all four off: a sixteenth
    assert all(each.dtype == torch.uint8 and each.shape == image.shape for each in found)


def test_a_larger_image_is_seen_in_windows(data: Data) -> None:
    made = SegmentationLinear(**FAST)
    image = torch.zeros(3, 8, 20, dtype=torch.uint8)
    image[0, :, 11:] = 180
    head = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        head[1].weight.copy_(torch.eye(4)[:, :, None, None])  # type: ignore[union-attr,operator]
        head[1].bias.zero_()  # type: ignore[union-attr,operator]
    scores = made.slide(image, partial(made._scores, Maps(True), head))  # type: ignore[arg-type]
    assert scores.shape == (4, 8, 20)
    assert scores.argmax(0).tolist() == [[0] * 11 + [3] * 9] * 8
    assert scores.amax(0).eq(1).all()  # averaged, not summed


# Settings and rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evaluator", "settings"),
    [
        (SegmentationKNN, {"memory": 0}),
        (SegmentationKNN, {"temperature": 0.0}),
        (PatchLinear, {"patches": 0}),
        (PatchLinear, {"C": ()}),
        (SegmentationLinear, {"crop": 0}),
        (SegmentationLinear, {"warmup": -1}),
    ],
)
def test_wrong_settings_are_named(evaluator: type[Evaluator], settings: dict[str, object]) -> None:
    with pytest.raises(UserError):
        evaluator(**settings)


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Data) -> None:
    """Row, predictions, check, leaderboard and compare of a ratio; data without masks is refused before all that."""
    monkeypatch.chdir(tmp_path)
    linear = SegmentationLinear(**FAST | {"steps": 3})
    evaluators: dict[str, Evaluator] = {"segmentation-knn": SegmentationKNN(memory=500), "segmentation-linear": linear}
    splits = Splits(data.train, data.test)
    for seed in (0, 1):
        torch.manual_seed(seed)
        loaded = Checkpoint(ViT("vit_nano_patch4_8"), f"m{seed}", {}, f"{seed}" * 64)
        for row in run_evaluations(loaded, evaluators, splits, tmp_path, None):
            assert row["task"] == "segmentation" and row["headline"] == "miou"
            assert read_picture(row) is not None
    leaderboard(tmp_path, show=lambda _: None)
    assert check(tmp_path, show=lambda _: None) == []
    shown: list[str] = []
    compare("m0", "m1", rows=tmp_path, show=shown.append)
    assert "paired over images" in "".join(shown)
    plain = ImageSet("plain", "train", data.train.labels, (), "0" * 64, data.train.images)
    with pytest.raises(UserError, match="segmentation-knn: plain has no masks, but pixels alone"):
        run_evaluations(loaded, evaluators, Splits(plain, plain), tmp_path, None)


@pytest.mark.parametrize("evaluator", [SegmentationKNN(), PatchLinear()], ids=lambda each: type(each).__name__)
def test_no_result_from_broken_maps(evaluator: Evaluator, data: Data) -> None:
    class Broken:
        poolings = ()

        def map_of(self, images: Tensor, blocks: Sequence[int] = ()) -> Tensor:
            return torch.full((len(images), 4, 4, 4), float("nan"))

    with pytest.raises(RunError, match="feature maps of the train split contain NaN"):
        evaluator.run(Broken(), data)  # type: ignore[arg-type]

"""Labels, depth, actions, copies and landmarks from frozen features: perfect ones, meaningless ones, worked numbers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from panels import panels_of
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones import build_backbone
from ssl_bench.backbones.pooling import Tokens
from ssl_bench.data.datasets import ImageSet, hold_out
from ssl_bench.data.targets import Search, Searches, Targets
from ssl_bench.evaluations.dense import feature_map
from ssl_bench.evaluations.evaluator import Data, Evaluator, Result
from ssl_bench.evaluations.frozen import descriptors as described
from ssl_bench.evaluations.frozen.copy_detection import COPIES, CopyDetection
from ssl_bench.evaluations.frozen.depth_linear import DepthLinear
from ssl_bench.evaluations.frozen.descriptors import generalised_mean, thumbnail, whitened
from ssl_bench.evaluations.frozen.landmarks import LEVELS, Landmarks, ranked
from ssl_bench.evaluations.frozen.multilabel import MultiLabel
from ssl_bench.evaluations.frozen.retrieval import average_precision
from ssl_bench.evaluations.frozen.video_linear import VideoLinear, segment_centres
from ssl_bench.metrics.depth import depth_errors
from ssl_bench.metrics.intervals import LARGEST, mean_metric
from ssl_bench.utils.errors import RunError, UserError

NAMES = ("background", "a", "b", "c")


def images(n: int, split: str, seed: int, **more: Any) -> ImageSet:
    pixels = torch.randint(0, 256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    labels = torch.zeros(n, dtype=torch.int64)
    return replace(ImageSet("made", split, labels, (), f"{seed:064x}", pixels), **more)


def data_of(train: ImageSet, test: ImageSet) -> Data:
    return Data(train, *hold_out(train), test)


class Features:
    """The features of images by their first pixels, or noise; under the name of each image's place in the first row."""

    poolings = ("cls", "mean")

    def __init__(self, of: Any) -> None:
        self.of = of

    def features(self, asked: ImageSet, poolings: Sequence[str]) -> dict[str, Tensor]:
        return {name: self.of(asked) for name in poolings}


# Several labels -------------------------------------------------------------------------------------------------------


def labelled(n: int, split: str, seed: int) -> ImageSet:
    """Each of three classes is in about half of the images; masks show it in one pixel."""
    there = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) < 0.5
    masks = torch.zeros(n, 16, 16, dtype=torch.uint8)
    for k in range(3):
        masks[:, k, k] = (k + 1) * there[:, k]
    return images(n, split, seed, targets=Targets(NAMES, masks=masks))


def sets_of(asked: ImageSet) -> Tensor:
    assert asked.targets is not None
    return torch.stack([torch.from_numpy(asked.targets.label_set(i)) for i in range(len(asked))])[:, 1:].float()


@pytest.mark.parametrize("rule", ["step", "voc2007"])
def test_labels_from_perfect_features_and_from_noise(rule: str) -> None:
    data = data_of(labelled(80, "train", 0), labelled(60, "test", 1))

    def noisy(asked: ImageSet) -> Tensor:
        return sets_of(asked) + 0.1 * torch.randn(len(asked), 3, generator=torch.Generator().manual_seed(len(asked)))

    made = MultiLabel(rule=rule)
    result = made.run(Features(noisy), data)  # type: ignore[arg-type]
    assert {metric.value for metric in result.metrics.values()} == {100}
    assert set(result.metrics) == {"map", "ap/a", "ap/b", "ap/c"}
    generator = torch.Generator().manual_seed(7)
    chance = made.run(Features(lambda asked: torch.randn(len(asked), 3, generator=generator)), data)  # type: ignore[arg-type]
    share = 100 * float(sets_of(data.test).mean())
    assert abs(chance.metrics["map"].value - share) < 15
    assert 100 * chance.correct.mean() == pytest.approx(chance.metrics["map"].value)
    json.dumps(chance.chosen)


def test_labels_that_tell_nothing_apart_are_an_error() -> None:
    same = images(20, "train", 0, targets=Targets(NAMES, masks=torch.ones(20, 16, 16, dtype=torch.uint8)))
    with pytest.raises(RunError, match="no label of made tells its images apart"):
        MultiLabel().run(Features(lambda asked: torch.randn(len(asked), 3)), data_of(same, same))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="multilabel rule"):
        MultiLabel(rule="area")


# Depth ----------------------------------------------------------------------------------------------------------------


def distant(n: int, split: str, seed: int) -> ImageSet:
    """What is how far away: the red channel says it, in 25ths of a metre; a corner isn't known."""
    made = images(n, split, seed)
    pixels = made.images.clone()  # type: ignore[union-attr]
    pixels[:, 0] = F.interpolate(torch.randint(30, 240, (n, 1, 2, 2), dtype=torch.uint8), (16, 16), mode="nearest")[
        :, 0
    ]
    depths = pixels[:, 0].float() / 25
    depths[:, :2, :2] = 0
    return replace(made, images=pixels, targets=Targets(depths=depths))


class Far:
    """A token a 4 x 4 patch: the mean of its red channel, by a soft histogram; or noise."""

    def __init__(self, perfect: bool) -> None:
        self.perfect = perfect

    def map_of(self, pixels: Tensor, blocks: Sequence[int] = (), cls: bool = False) -> Tensor:
        assert cls
        red = F.avg_pool2d(pixels[:, :1].float() / 25, 4)
        if not self.perfect:
            return torch.randn(len(pixels), 16, *red.shape[2:])
        return (-((red - torch.linspace(0, 10, 16).view(1, 16, 1, 1)) ** 2)).exp()


DEPTH: dict[str, Any] = {"steps": 300, "warmup": 20, "batch_size": 8, "bins": 16, "lr": 0.05, "border": (0.0,) * 4}


def test_depth_from_perfect_features_and_from_noise() -> None:
    torch.manual_seed(0)
    data = data_of(distant(40, "train", 0), distant(20, "test", 1))
    result = DepthLinear(**DEPTH, crop=(16, 16)).run(Far(True), data)  # type: ignore[arg-type]
    noise = DepthLinear(**DEPTH, crop=(16, 16)).run(Far(False), data)  # type: ignore[arg-type]
    assert result.metrics["a1"].value > 70 > noise.metrics["a1"].value + 20
    assert result.metrics["rmse"].value < 0.6 * noise.metrics["rmse"].value
    assert 100 * result.correct.mean() == pytest.approx(result.metrics["a1"].value, rel=1e-6)
    apart = [np.abs(np.subtract(truth, seen)).mean() for _, truth, seen in panels_of(result.picture, 3)]
    lost = [np.abs(np.subtract(truth, seen)).mean() for _, truth, seen in panels_of(noise.picture, 3)]
    assert max(apart) < min(lost)
    for found in (result, noise):
        assert all(metric.low <= metric.value <= metric.high for metric in found.metrics.values())
    far = depth_errors(torch.full((4, 4), 9.0), torch.full((4, 4), 0.5), 10.0)["sq_rel"]
    assert mean_metric(torch.tensor([far, far + 1]), LARGEST).high > far > 100
    assert set(result.metrics) == {"a1", "a2", "a3", "rmse", "abs_rel", "sq_rel", "rmse_log", "log10", "silog"}


def test_crops_of_depths_go_with_their_pictures() -> None:
    made = DepthLinear(**{**DEPTH, "steps": 4, "warmup": 0}, crop=(8, 12))
    data = distant(10, "train", 3)
    first, again = (list(made._batches(data)) for _ in range(2))
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, again, strict=True))
    for pixels, depths in first:
        assert pixels.shape == (8, 3, 8, 12) and depths.shape == (8, 8, 12)
        known = depths > 0
        assert torch.allclose(depths[known], pixels[:, 0][known].float() / 25)


def test_the_class_token_stands_behind_each_token() -> None:
    torch.manual_seed(0)
    network = build_backbone("vit_nano_patch4_16").eval()
    pixels = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        tokens, both = network(pixels), feature_map(network, pixels, cls=True)
    assert both.shape == (2, 48, 4, 6)
    assert torch.allclose(both[:, 24:], tokens.cls[:, :, None, None].expand(2, 24, 4, 6))
    assert torch.allclose(both[:, :24].flatten(2).transpose(1, 2), tokens.patches)


def test_the_border_is_left_out() -> None:
    made = DepthLinear()
    assert made._inside(torch.zeros(480, 640)).shape == (471 - 45, 601 - 41)  # Eigen's crop
    with pytest.raises(UserError, match="border"):
        DepthLinear(border=(0.5, 0.5, 0.0, 0.0))


# Actions --------------------------------------------------------------------------------------------------------------


def clips(n: int, split: str, seed: int, frames: int = 10) -> ImageSet:
    """Two actions of the same frames, one forwards and one backwards, and two that a frame tells."""
    labels = torch.arange(n) % 4
    of = torch.arange(n).repeat_interleave(frames)
    return images(
        n * frames,
        split,
        seed,
        labels=labels.repeat_interleave(frames),
        classes=tuple("abcd"),
        targets=Targets(clips=of),
    )


def frames_of(asked: ImageSet) -> Tensor:
    """A frame's place in its clip where the class is 0, from the end where it is 1; 2 and 3 are constant."""
    assert asked.targets is not None and asked.targets.clips is not None
    generator = torch.Generator().manual_seed(len(asked))
    starts = {int(c): i for i, c in reversed(list(enumerate(asked.targets.clips.tolist())))}
    found = torch.zeros(len(asked), 3)
    for i, (clip, label) in enumerate(zip(asked.targets.clips.tolist(), asked.labels.tolist(), strict=True)):
        at = i - starts[clip]
        found[i, 0] = {0: at, 1: 7 - at}.get(label, 3.5)
        found[i, 1] = float(label == 2)
    return found + 0.05 * torch.randn(found.shape, generator=generator)


def test_only_order_tells_some_actions_apart() -> None:
    data = data_of(clips(80, "train", 0), clips(40, "test", 1))
    found = {
        over: VideoLinear(over_time=over, lr=(0.03,), epochs=150).run(Features(frames_of), data)  # type: ignore[arg-type]
        for over in ("average", "concatenate", "attention")
    }
    # An average of a forward and of a backward clip is the same, so that one of the two is a guess.
    assert 35 < found["average"].metrics["top1"].value < 85
    assert found["concatenate"].metrics["top1"].value == 100
    assert found["attention"].metrics["top1"].value > 95
    assert found["average"].correct.shape == (40,)
    assert found["average"].chosen["clips"] == 80 and found["average"].chosen["dev_clips"] == 8
    json.dumps(found["attention"].chosen)


def test_frames_come_from_the_centres_of_equal_parts() -> None:
    assert segment_centres(10, 8).tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
    assert segment_centres(25, 8).tolist() == [1, 4, 7, 10, 14, 17, 20, 23]
    assert segment_centres(300, 8).tolist() == [18, 56, 93, 131, 168, 206, 243, 281]
    assert segment_centres(3, 8).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("wrong", [{"over_time": "sum"}, {"lr": ()}, {"heads": 0}, {"dev": 1.0}])
def test_wrong_settings_of_video_linear_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"video-linear.*{next(iter(wrong))}"):
        VideoLinear(**wrong)


def test_heads_must_divide_the_features() -> None:
    data = data_of(clips(40, "train", 0), clips(8, "test", 1))
    with pytest.raises(UserError, match="heads is 2, which does not divide the 3 features"):
        VideoLinear(over_time="attention", heads=2).run(Features(frames_of), data)  # type: ignore[arg-type]


# Copies ---------------------------------------------------------------------------------------------------------------


class Sees(nn.Module):
    """A network whose tokens are pixels: nothing that pictures show is lost."""

    image_size, mean, std, cell = (16, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 4
    can_train, multi_crop, has_map, name = False, True, True, "sees"

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // 4, size[1] // 4

    def forward(self, pixels: Tensor) -> Tokens:
        tokens = F.adaptive_avg_pool2d(pixels, 8).flatten(1)
        return Tokens(tokens, F.pixel_unshuffle(F.adaptive_avg_pool2d(pixels, 16), 4).flatten(2).transpose(1, 2))


class Holds:
    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def copy(self) -> nn.Module:
        return self.network


def test_copies_are_found_by_what_they_show() -> None:
    data = data_of(images(60, "train", 0), images(50, "test", 1))
    result = CopyDetection(images=20, whitening=0, kind="cls").run(Holds(Sees()), data)  # type: ignore[arg-type]
    assert result.metrics["map/gaussian_noise"].value > 90
    assert result.metrics["map/contrast"].value > 90
    assert set(result.metrics) == {"map", *(f"map/{name}" for name in COPIES)}
    assert result.correct.shape == (20,)
    assert 100 * result.correct.mean() == pytest.approx(result.metrics["map"].value)
    again = CopyDetection(images=20, whitening=0, kind="cls").run(Holds(Sees()), data)  # type: ignore[arg-type]
    assert again.metrics == result.metrics
    white = CopyDetection(images=20, whitening=60).run(Holds(Sees()), data)  # type: ignore[arg-type]
    assert white.metrics["map/mirror"].value < 60


def test_the_first_20_places_are_looked_at() -> None:
    """The area of trapezoids of one original at a place behind 0 is (0 + 1 / (place + 1)) / 2."""
    places = [0, 1, 18, 19, 20]
    queries = torch.zeros(len(places), 30)
    for row, (query, place) in enumerate(zip(queries, places, strict=True)):
        query[row] = 1.0
        query[29 - torch.arange(place)] = 2.0
    found = CopyDetection._search(queries, torch.eye(30), range(len(places)))
    assert found.tolist() == pytest.approx([1, 0.25, 1 / 38, 1 / 40, 0])
    ties = CopyDetection._search(torch.ones(1, 3), torch.eye(3), [0])
    assert ties.tolist() == pytest.approx([1 / 6])  # behind the two that are as similar


def test_the_generalised_mean_and_the_whitening_of_the_released_code() -> None:
    maps = torch.tensor([[[1.0, 2], [-2, 2], [3, -1], [0.5, 0]]])
    assert generalised_mean(maps)[0].tolist() == pytest.approx([2.128243, 1.681793], abs=1e-6)
    assert generalised_mean(torch.tensor([[[0.1], [0.5], [-0.2], [0.9]]])).item() == pytest.approx(
        0.6510613485, abs=1e-6
    )
    training = torch.tensor([[1.0, 2], [2, 0], [0, 1], [3, 1]])
    queries, database = whitened(training, torch.tensor([[1.0, 1], [2, 2]])), whitened(training, training)
    assert (queries[0] @ queries[1]).item() == pytest.approx(0.251976, abs=1e-6)
    values, vectors = np.linalg.eigh(np.cov(training.numpy().T, bias=True))  # centred, as it would be without the slip
    centred = (np.array([[1.0, 1], [2, 2]]) - [1.5, 1]) @ vectors / np.sqrt(values)
    assert centred[0] @ centred[1] / np.linalg.norm(centred, axis=1).prod() == pytest.approx(-0.554700, abs=1e-6)
    assert (queries[0] @ database.T).tolist() == pytest.approx([0.721336, -0.721336, 1, -1], abs=1e-6)
    assert (queries[1] @ database.T).tolist() == pytest.approx([0.851998, -0.851998, 0.251976, -0.251976], abs=1e-6)


# Landmarks ------------------------------------------------------------------------------------------------------------


def test_rankings_without_junk() -> None:
    """R1 of the evaluations' cards: two queries, ranks given by columns."""
    orders = [[3, 1, 0, 4, 2], [0, 4, 2, 1, 3]]
    searches = [
        Search(np.array([1, 4]), np.zeros(0, int), np.array([3])),
        Search(np.array([2, 3]), np.zeros(0, int), np.array([0, 1])),
    ]
    found = []
    for order, search in zip(orders, searches, strict=True):
        similarity = np.zeros(5)
        similarity[order] = np.arange(5, 0, -1)
        found.append(average_precision(ranked(similarity, search, "medium"), "trapezoid"))
    assert found == pytest.approx([0.7916666667, 0.4166666667])
    result = landmarks_of(orders, searches, k=(1, 2))
    assert result.metrics["map"].value == pytest.approx(60.41666667)
    assert [result.metrics[f"precision@k={k}"].value for k in (1, 2)] == [50, 50]


def landmarks_of(orders: list[list[int]], searches: list[Search], k: tuple[int, ...]) -> Result:
    """What `landmarks` says of rankings that are given: the queries' similarities to a database of unit vectors."""
    n = len(orders[0])
    database, queries = images(n, "train", 0), images(len(orders), "test", 1)
    similarity = torch.zeros(len(orders), n)
    for row, order in zip(similarity, orders, strict=True):
        row[torch.tensor(order)] = torch.arange(n, 0, -1).float()
    described = {"train": torch.eye(n), "test": similarity}
    data = data_of(database, replace(queries, targets=Targets(searches=Searches(searches))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Landmarks, "_described", lambda self, network, asked: described[asked.split])
        return Landmarks(k=k).run(Holds(Sees()), data)  # type: ignore[arg-type]


def test_precision_among_the_first_of_a_worked_example() -> None:
    """At medium difficulty, of what is left without junk; not of more places than up to the last right one."""
    none = np.zeros(0, int)
    searches = [
        Search(np.array([0]), np.array([2]), none),  # right at the places 0 and 2
        Search(np.array([0]), none, np.array([1, 2])),  # at 0, and then no more
        Search(none, np.array([4, 5]), np.array([0])),  # at 3 and 4, the junk at the top left out
    ]
    result = landmarks_of([[0, 1, 2, 3, 4, 5]] * 3, searches, k=(1, 2, 3, 4, 10))
    found = [result.metrics[f"precision@k={k}"].value for k in (1, 2, 3, 4, 10)]
    each = [[100, 50, 200 / 3, 200 / 3, 200 / 3], [100] * 5, [0, 0, 0, 25, 40]]
    assert found == pytest.approx(np.mean(each, axis=0), abs=1e-4)


def brute_force(order: list[int], search: Search, level: str) -> float:
    """The area as the revisited benchmark's `compute_ap` adds it up."""
    right = {"easy": search.easy, "medium": [*search.easy, *search.hard], "hard": search.hard}[level]
    junk = {"easy": [*search.junk, *search.hard], "medium": search.junk, "hard": [*search.junk, *search.easy]}[level]
    rest = [image for image in order if image not in junk]
    total = 0.0
    for found, rank in enumerate(i for i, image in enumerate(rest) if image in right):
        before = 1.0 if rank == 0 else found / rank
        total += (before + (found + 1) / (rank + 1)) / 2 / len(right)
    return total


def test_landmarks_against_brute_force_and_perfect_features() -> None:
    random = np.random.default_rng(0)
    n, count = 40, 6
    database = images(n, "train", 0)
    queries = images(count, "test", 1)
    searches = Searches()
    pixels = database.images.clone()  # type: ignore[union-attr]
    for _ in range(count):
        easy, hard, junk = np.split(random.permutation(n)[:9], 3)
        searches.append(Search(easy, hard, junk))
    nothing = Search(*(np.zeros(0, int),) * 3)
    searches[5] = Search(np.zeros(0, int), searches[5].hard, searches[5].junk)
    train = replace(database, images=pixels, targets=Targets(searches=Searches([nothing] * n)))
    data = data_of(train, replace(queries, targets=Targets(searches=searches)))
    result = Landmarks(side=16).run(Holds(Sees()), data)  # type: ignore[arg-type]
    of = [F.normalize(Sees()(each.images.float() / 255).cls, dim=1) for each in (train, queries)]  # type: ignore[union-attr]
    orders = (-(of[1] @ of[0].T)).argsort(dim=1, stable=True).tolist()
    for level, name in zip(LEVELS, ("map_easy", "map_medium", "map_hard"), strict=True):
        kept = [q for q in range(count) if level != "easy" or len(searches[q].easy)]
        expected = np.mean([brute_force(orders[q], searches[q], level) for q in kept])
        assert result.metrics[name].value == pytest.approx(100 * expected, abs=1e-4)
    assert result.metrics["map"] == result.metrics["map_medium"]
    assert result.chosen["queries"] == {"easy": 5, "medium": 6, "hard": 6}

    same = replace(queries, images=pixels[[int(search.hard[0]) for search in searches]])
    alone = Searches(Search(np.zeros(0, int), search.hard[:1], search.junk) for search in searches)
    perfect = data_of(train, replace(same, targets=Targets(searches=alone)))
    found = Landmarks(side=16, scales=(1.0, 0.5)).run(Holds(Sees()), perfect)  # type: ignore[arg-type]
    assert found.metrics["map"].value == found.metrics["map_hard"].value == 100
    assert "map_easy" not in found.metrics
    with pytest.raises(RunError, match="3 images of made are missing"):
        Landmarks(side=16).run(Holds(Sees()), data_of(replace(train, skipped=3), perfect.test))  # type: ignore[arg-type]


def test_pictures_keep_their_proportions_and_are_never_enlarged() -> None:
    prepare = thumbnail(32, 4)
    for (height, width), expected in {(64, 48): (32, 24), (20, 13): (20, 12), (2, 90): (4, 32)}.items():
        assert prepare(torch.zeros(3, height, width, dtype=torch.uint8)).shape[1:] == expected
    pixels = torch.randint(0, 256, (3, 20, 13), dtype=torch.uint8)
    assert torch.equal(prepare(pixels), pixels[:, :, :12])


def test_batches_of_sizes_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    made = images(12, "test", 0)
    sizes = itertools.cycle([(16, 16), (12, 16), (16, 12)])
    pictures = [made.images[i][:, :h, :w] for i, (h, w) in zip(range(12), sizes, strict=False)]
    mixed = replace(made, images=pictures)  # type: ignore[arg-type]
    whole = described.descriptors(Sees(), mixed, "cls+gem", lambda x: x, range(12))
    monkeypatch.setattr(described, "IMAGES_PER_BATCH", 2)
    assert torch.equal(described.descriptors(Sees(), mixed, "cls+gem", lambda x: x, range(12)), whole)
    with pytest.raises(UserError, match="descriptor"):
        CopyDetection(kind="gem")


@pytest.mark.parametrize("evaluator", [Landmarks(), CopyDetection()])
def test_a_function_of_images_is_refused(evaluator: Evaluator) -> None:
    data = data_of(images(20, "train", 0), images(10, "test", 1))
    with pytest.raises(UserError, match=r"one size alone|one vector an image"):
        evaluator.run(Holds(nn.Identity()), data)  # type: ignore[arg-type]

"""Label propagation and the measures of DAVIS: literal results of the authors' code, brute force, drawn clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from panels import panels_of
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.data import scenes
from ssl_bench.data.datasets import ImageSet
from ssl_bench.data.targets import Targets
from ssl_bench.evaluations import dense
from ssl_bench.evaluations.evaluator import Data
from ssl_bench.evaluations.frozen.vos import VOS, frame_size, neighbourhood, propagated, stretched
from ssl_bench.metrics.objects import boundary, outline, region
from ssl_bench.metrics.ratios import ratio
from ssl_bench.utils.errors import RunError, UserError

SOURCE = torch.tensor([[1, 0], [0, 1], [1, 1], [1, -1], [-1, 0.5], [0.2, 1]])
TARGET = torch.tensor([[1, 0.2], [0.1, 1], [1, 0.8], [0.9, -1], [-1, 0.4], [0.3, 1]])
FIRST = torch.tensor([0, 1, 1, 0, 0, 1])
SECOND = torch.tensor([0, 0, 1, 0, 1, 1])


@pytest.mark.parametrize(
    ("radius", "topk", "two", "expected"),
    [
        (1, 2, False, [0, 1, 1, 0, 0.001924, 1]),
        (0, 2, False, [0.184628, 1, 0.893799, 0, 0.001924, 1]),
        (1, 5, False, [0.000386, 0.999145, 0.999999, 0, 0.002214, 0.999869]),
        (1, 2, True, [0, 0.488074, 1, 0, 0.508635, 1]),
    ],
)
def test_propagation_of_the_authors(radius: int, topk: int, two: bool, expected: list[float]) -> None:
    """`label_propagation` of DINO on literal inputs, grid 2 x 3."""
    sources = torch.stack([SOURCE, TARGET] if two else [SOURCE])
    labels = torch.stack([F.one_hot(mask, 2).T.float() for mask in ([FIRST, SECOND] if two else [FIRST])])
    near = neighbourhood((2, 3), radius) if radius else None
    found = propagated(F.normalize(sources, dim=2), F.normalize(TARGET, dim=1), labels, near, topk, 0.1)
    assert found[1].tolist() == pytest.approx(expected, abs=1e-5)
    assert found.sum(0).tolist() == pytest.approx([1] * 6)


def test_ties_are_all_kept() -> None:
    sources = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    labels = torch.eye(2)[None]
    assert propagated(sources, sources[0], labels, None, 1, 0.1).tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_stretching_of_the_authors() -> None:
    assert stretched(torch.tensor([[[0.2, 0.6], [0.4, 0.4]]])).flatten().tolist() == pytest.approx([0, 1, 0.5, 0.5])
    assert stretched(torch.zeros(1, 2, 2)).tolist() == [[[0, 0], [0, 0]]]
    assert stretched(torch.full((1, 2, 2), 0.3)).tolist() == [[[0, 0], [0, 0]]]  # not a number in theirs


def square(shape: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
    return mask


@pytest.mark.parametrize(
    ("shape", "truth", "prediction", "j", "f"),
    [
        ((8, 8), ((2, 5), (2, 5)), ((2, 5), (3, 6)), 0.6, 1.0),
        ((8, 8), ((2, 5), (2, 5)), ((1, 6), (1, 6)), 0.444444, 0.909091),
        ((8, 8), ((2, 5), (2, 5)), ((0, 2), (0, 2)), 0.041667, 0.476190),
        ((40, 60), ((10, 29), (10, 29)), ((11, 30), (13, 32)), 0.677149, 0.4875),
        ((40, 60), ((10, 29), (10, 29)), ((10, 29), (10, 31)), 0.909091, 0.768293),
    ],
)
def test_measures_of_the_toolkit(shape: tuple[int, int], truth: tuple, prediction: tuple, j: float, f: float) -> None:
    """davis2017-evaluation on literal inputs."""
    a, b = square(shape, *truth), square(shape, *prediction)
    assert region(b, a) == pytest.approx(j, abs=1e-6)
    assert boundary(b, a) == pytest.approx(f, abs=1e-6)


def test_the_boundary_of_a_frame_of_davis_may_be_off_by_8_pixels() -> None:
    """0.008 of the diagonal of 480 x 854, rounded up."""
    truth = square((480, 854), (100, 300), (200, 500))
    assert boundary(square((480, 854), (108, 308), (200, 500)), truth) == 1
    assert boundary(square((480, 854), (109, 309), (200, 500)), truth) < 1


def test_empty_masks() -> None:
    empty, full = np.zeros((8, 8), bool), square((8, 8), (2, 5), (2, 5))
    assert (region(empty, empty), boundary(empty, empty)) == (1, 1)
    assert (region(empty, full), boundary(empty, full), region(full, empty), boundary(full, empty)) == (0, 0, 0, 0)


def test_the_outline_of_a_square() -> None:
    expected = square((8, 8), (1, 5), (1, 5)) & ~square((8, 8), (2, 4), (2, 4))
    assert np.array_equal(outline(square((8, 8), (2, 5), (2, 5))), expected)


def slow_boundary(a: np.ndarray, b: np.ndarray) -> float:
    """Point by point."""
    reach = math.ceil(0.008 * math.hypot(*a.shape))
    lines = [[(y, x) for y in range(m.shape[0]) for x in range(m.shape[1]) if outline(m)[y, x]] for m in (a, b)]

    def found(these: list[tuple[int, int]], others: list[tuple[int, int]]) -> float:
        near = [any((y - v) ** 2 + (x - u) ** 2 <= reach**2 for v, u in others) for y, x in these]
        return sum(near) / len(near)

    precision, recall = found(*lines), found(*reversed(lines))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("seed", range(3))
def test_the_boundary_against_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = (30, 200 + 60 * seed)  # tolerances of 2 and 3 pixels
    corners = random.integers(0, 20, (2, 2))
    a, b = (square(shape, (int(y), int(y) + 9), (int(x), int(x) + 25)) for y, x in corners)
    assert boundary(a, b) == pytest.approx(slow_boundary(a, b))


# The evaluation -------------------------------------------------------------------------------------------------------


class Colours:
    """A token for every pixel: one-hot by the number in the red channel, or noise."""

    def __init__(self, perfect: bool = True) -> None:
        self.perfect, self.generator = perfect, torch.Generator().manual_seed(0)

    def map_of(self, images: Tensor, blocks: Sequence[int] = ()) -> Tensor:
        if self.perfect:
            return F.one_hot(images[:, 0].long() // 60, 4).permute(0, 3, 1, 2).float()
        return torch.randn(len(images), 8, *images.shape[2:], generator=self.generator)


@pytest.fixture(scope="module")
def data() -> Data:
    """Drawn clips, painted in one colour for each object and made small."""
    drawn = scenes.draw_clips(4, size=32)
    seen = drawn.instances[:, ::2, ::2].contiguous()
    images = (60 * seen)[:, None].repeat(1, 3, 1, 1)
    labels = torch.zeros(len(images), dtype=torch.int64)
    test = ImageSet("clips", "test", labels, (), "0" * 64, images, targets=Targets(instances=seen, clips=drawn.clips))
    return Data(test, test.subset(torch.arange(32), "train"), test.subset(torch.arange(32, 64), "dev"), test)


def test_perfect_features_are_all_right_and_noise_is_not(data: Data) -> None:
    result = VOS(radius=0).run(Colours(), data)  # type: ignore[arg-type]
    assert {name: metric.value for name, metric in result.metrics.items()} == dict.fromkeys(result.metrics, 100)
    assert result.correct.shape == (4, 1, 2)
    assert result.picture is not None and result.picture.columns[:3] == (
        "first frame",
        "true objects at 25%",
        "followed to 25%",
    )
    for _, *later in panels_of(result.picture, 3):
        assert later[0::2] == later[1::2] and later[0] != later[2]
    noise = VOS().run(Colours(False), data)  # type: ignore[arg-type]
    assert noise.metrics["j"].value < 30
    assert noise.metrics["jf"].value == pytest.approx((noise.metrics["j"].value + noise.metrics["f"].value) / 2)
    assert noise.metrics["jf"].value == pytest.approx(100 * ratio(noise.correct))


def test_batches_do_not_show(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = VOS(radius=2, topk=3).run(Colours(), data)  # type: ignore[arg-type]
    assert whole.metrics["jf"].value < 100  # objects leave the neighbourhood of what is left of them
    monkeypatch.setattr(dense, "PIXELS_PER_BATCH", 1)
    again = VOS(radius=2, topk=3).run(Colours(), data)  # type: ignore[arg-type]
    assert again.metrics == whole.metrics


def test_only_the_first_and_the_last_frames_are_remembered(data: Data) -> None:
    """With no frames but the first, a target that stands where it stood keeps its label, whatever came between."""
    assert data.test.targets is not None
    clip = data.test.subset(torch.arange(scenes.FRAMES), "test")
    found = list(VOS(frames=0, radius=0).propagate(Colours(), clip))  # type: ignore[arg-type]
    assert len(found) == scenes.FRAMES
    assert clip.targets is not None
    assert torch.equal(found[0], clip.targets.instance(0))


def test_the_first_frame_and_seven_others_give_labels(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts: list[int] = []

    def counted(sources: Tensor, *rest: Any) -> Tensor:
        contexts.append(len(sources))
        return propagated(sources, *rest)

    monkeypatch.setattr("ssl_bench.evaluations.frozen.vos.propagated", counted)
    list(VOS().propagate(Colours(), data.test.subset(torch.arange(scenes.FRAMES), "test")))  # type: ignore[arg-type]
    assert contexts == [*range(1, 9), *[8] * (scenes.FRAMES - 9)]


def test_a_token_may_move_by_twelve() -> None:
    """25 x 25 tokens around it, of 30 x 52."""
    near = neighbourhood((30, 52), VOS().radius)
    assert near.shape == (1560, 1560) and near.sum(1).max() == 625 and near[0].sum() == 169


def test_frames_of_davis_are_resized_as_the_authors_do() -> None:
    assert frame_size((480, 854), 480) == (480, 832)  # 30 x 52 tokens of 16
    assert frame_size((480, 910), 480) == (480, 896)
    assert frame_size((1080, 1920), 480) == (480, 832)
    assert frame_size((854, 480), 480) == (832, 480)


def test_no_object_stops(data: Data) -> None:
    empty = torch.zeros(16, 16, 16, dtype=torch.uint8)
    targets = Targets(instances=empty, clips=torch.zeros(16, dtype=torch.int64))
    images = empty[:, None].repeat(1, 3, 1, 1)
    clip = ImageSet("empty", "test", torch.zeros(16, dtype=torch.int64), (), "0" * 64, images, targets=targets)
    with pytest.raises(RunError, match="no clip of empty shows an object"):
        VOS().run(Colours(), Data(data.train, data.fit, data.dev, clip))  # type: ignore[arg-type]


def test_clips_with_gaps_are_refused(data: Data) -> None:
    with pytest.raises(RunError, match="vos: 2 frames of clips are missing"):
        VOS().run(Colours(), replace(data, test=replace(data.test, skipped=2)))  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"topk": 0}, {"radius": -1}, {"temperature": 0.0}, {"short_side": 0}])
def test_wrong_settings_are_named(settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match="vos: topk"):
        VOS(**settings)  # type: ignore[arg-type]

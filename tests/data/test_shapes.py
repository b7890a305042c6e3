"""`shapes` is deterministic, balanced, truthful about its factors and does not give the class away in its colours."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.data import shapes
from ssl_bench.data.shapes import BACKGROUNDS, CLASSES, MAX_CLUTTER, Drawn, draw
from ssl_bench.utils.errors import UserError


@pytest.fixture(scope="module")
def train() -> Drawn:
    return draw(2000, seed=0)


@pytest.fixture(scope="module")
def test() -> Drawn:
    return draw(500, seed=1)


def ridge_accuracy(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """Percent correct of least squares on one-hot targets, from the features and their squares."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    z, z_test = (x - mean) / std, (x_test - mean) / std
    z, z_test = (torch.cat([v, v**2, torch.ones(len(v), 1)], 1).double() for v in (z, z_test))
    weights = torch.linalg.solve(z.T @ z + torch.eye(z.shape[1]), z.T @ F.one_hot(y, len(CLASSES)).double())
    return 100 * ((z_test @ weights).argmax(1) == y_test).double().mean().item()


def test_doctest() -> None:
    result = doctest.testmod(shapes)
    assert result.attempted > 0
    assert result.failed == 0


def test_same_arguments_same_images() -> None:
    first, second = draw(30, seed=5), draw(30, seed=5)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)
    assert all(torch.equal(first.factors[name], second.factors[name]) for name in first.factors)


def test_the_global_generators_are_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = draw(10, seed=5).images
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(draw(10, seed=5).images, first)


def test_the_number_of_threads_is_left_as_it_was() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        draw(10)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_shorter_draw_is_the_start_of_a_longer_one(train: Drawn) -> None:
    short = draw(37, seed=0)
    assert len(short.images) == len(short.labels) == len(short.factors["hue"]) == 37
    assert torch.equal(short.images, train.images[:37])
    assert torch.equal(short.factors["x"], train.factors["x"][:37])


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw(60, seed=2)
    monkeypatch.setattr(shapes, "_CHUNK", 1)  # one block of ten at a time
    assert torch.equal(draw(60, seed=2).images, whole.images)


def test_seeds_differ_and_images_do_not_repeat(train: Drawn, test: Drawn) -> None:
    assert not torch.equal(train.labels[:500], test.labels)
    seen = {image.numpy().tobytes() for image in [*train.images, *test.images]}
    assert len(seen) == len(train.images) + len(test.images)


@pytest.mark.parametrize("size", [32, 48, 64])
def test_types_and_shapes(size: int) -> None:
    drawn = draw(20, size=size)
    assert drawn.images.shape == (20, 3, size, size)
    assert drawn.images.dtype == torch.uint8
    assert drawn.labels.dtype == torch.int64
    assert drawn.images.float().std() > 20  # not washed out: levels of 0 to 255


def test_a_larger_size_shows_the_same_scenes() -> None:
    small, large = draw(40, size=32, seed=4), draw(40, size=128, seed=4)
    assert torch.equal(small.labels, large.labels)
    assert all(torch.equal(small.factors[name], large.factors[name]) for name in small.factors)
    shrunk = F.avg_pool2d(large.images.float(), 4)
    assert (shrunk - small.images.float()).abs().mean() < 10  # levels; noise and edges differ
    assert (shrunk.roll(1, 0) - small.images.float()).abs().mean() > 30


def test_classes_are_balanced(train: Drawn) -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 10
    assert torch.bincount(train.labels, minlength=10).tolist() == [200] * 10
    counts = torch.bincount(draw(25).labels, minlength=10)
    assert counts.max() - counts.min() <= 1
    assert train.labels[:10].tolist() != train.labels[10:20].tolist()  # shuffled


def test_factors_are_in_range(train: Drawn) -> None:
    factors = train.factors
    assert torch.equal(factors["shape"], train.labels)
    ranges = {
        "shape": (0, 9),
        "x": (0.25, 0.75),
        "y": (0.25, 0.75),
        "scale": (0.45, 0.65),
        "orientation": (-15, 15),
        "texture_orientation": (-30, 30),
        "hue": (0, 360),
        "background_hue": (0, 360),
        "stretch": (1, 1.25),
        "period": (0.15, 0.21),
        "contrast": (0.5, 0.75),
        "background": (0, len(BACKGROUNDS) - 1),
        "clutter": (0, MAX_CLUTTER),
        "light": (0, 0.2),
    }
    assert set(factors) == set(ranges)
    for name, (low, high) in ranges.items():
        values = factors[name]
        assert values.shape == (2000,)
        assert values.dtype == (torch.int64 if name in ("shape", "background", "clutter") else torch.float32)
        assert low <= values.min() <= low + 0.05 * (high - low), name  # within the range and filling it
        assert high - 0.05 * (high - low) <= values.max() <= high, name


def test_factors_say_where_and_how_large_the_object_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # Paint the object white on a black scene without light or noise, then measure it in the picture.
    def black(scene: dict[str, Tensor], size: int) -> Tensor:
        return torch.zeros(len(scene["x"]), 3, size, size)

    monkeypatch.setattr(shapes, "_background", black)
    monkeypatch.setattr(shapes, "_add_clutter", lambda image, scene: image)
    monkeypatch.setattr(shapes, "_colour", lambda luminance, hue, saturation: torch.ones(len(luminance), 3, 1, 1))
    drawn = draw(400, size=64, seed=6)
    white = (drawn.images.float().mean(1) > 100).double()
    centres = (torch.arange(64) + 0.5) / 64
    area = white.mean((1, 2))
    cx = (white.sum(1) * centres).sum(1) / white.sum((1, 2))
    cy = (white.sum(2) * centres).sum(1) / white.sum((1, 2))
    assert (cx - drawn.factors["x"]).abs().mean() < 0.02
    assert (cy - drawn.factors["y"]).abs().mean() < 0.02
    by_class = torch.stack([(area.sqrt() / drawn.factors["scale"])[drawn.labels == c].mean() for c in range(10)])
    assert by_class.min() > 0.9  # some objects reach over the border
    assert by_class.max() < 1.03
    for c in range(10):
        one = drawn.labels == c
        assert torch.corrcoef(torch.stack([area[one].sqrt(), drawn.factors["scale"][one].double()]))[0, 1] > 0.7


def test_colour_and_factors_do_not_give_the_class_away(train: Drawn, test: Drawn) -> None:
    # Chance is 10 %; with 500 test images three standard errors are 4 points.
    colour, colour_test = (d.images.float().mean((2, 3)) for d in (train, test))
    assert ridge_accuracy(colour, train.labels, colour_test, test.labels) < 15
    names = [name for name in train.factors if name != "shape"]
    factors, factors_test = (torch.stack([d.factors[n].float() for n in names], 1) for d in (train, test))
    assert ridge_accuracy(factors, train.labels, factors_test, test.labels) < 15


def test_raw_pixels_do_not_give_the_class_away(train: Drawn, test: Drawn) -> None:
    x, x_test = (F.normalize(d.images.flatten(1).float(), dim=1) for d in (train, test))
    similarity, index = (x_test @ x.T).topk(20, dim=1)
    votes = F.one_hot(train.labels[index], 10) * (similarity / 0.07).exp().unsqueeze(2)
    assert ((votes.sum(1).argmax(1) == test.labels).float().mean()) <= 0.40


def test_textures_tell_classes_apart() -> None:
    # Directions of the luminance gradient inside the object: stripes have one, a checker has two at a right angle.
    drawn = draw(400, size=64, seed=8)
    grey = drawn.images.float().mean(1)
    dx, dy = grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2], grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]
    dx, dy = dx[:, 22:40, 22:40], dy[:, 22:40, 22:40]
    xx, yy, xy = (dx * dx).sum((1, 2)), (dy * dy).sum((1, 2)), (dx * dy).sum((1, 2))
    coherence = torch.hypot(xx - yy, 2 * xy) / (xx + yy)  # 1: one direction only, 0: none or two
    mean = {name: coherence[drawn.labels == c].mean().item() for c, name in enumerate(CLASSES)}
    assert math.isfinite(sum(mean.values()))
    assert mean["capsule"] > mean["disk"] + 0.1
    assert mean["disk"] < 0.4
    energy = {name: (xx + yy)[drawn.labels == c].median().item() for c, name in enumerate(CLASSES)}
    textured = [value for name, value in energy.items() if name not in ("star", "ring", "crescent")]  # no hole there
    assert energy["star"] < 0.5 * min(textured)


@pytest.mark.parametrize(
    ("arguments", "value"), [({"n": 0}, "0"), ({"n": 5, "size": 31}, "31"), ({"n": 5, "seed": -1}, "-1")]
)
def test_wrong_arguments_are_named(arguments: dict[str, int], value: str) -> None:
    with pytest.raises(UserError, match=value):
        draw(**arguments)

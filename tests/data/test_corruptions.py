"""Corruptions against other libraries, their definitions and the authors' loops."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage
from torch import Tensor

from ssl_bench.data import corruptions
from ssl_bench.data.corruptions import CORRUPTIONS, SMALLEST, blurs, corrupt, nearest_set, smoothed, weather
from ssl_bench.data.corruptions.blurs import disk, motion
from ssl_bench.data.corruptions.strengths import STRENGTHS
from ssl_bench.data.corruptions.weather import plasma

RANDOM = np.random.default_rng(0)


def picture(side: int = 32, seed: int = 0) -> Tensor:
    """A smooth random image with a black and a grey corner."""
    noise = np.random.default_rng(seed).random((side, side, 3))
    x = ndimage.gaussian_filter(noise, (2, 2, 0))
    x = (x - x.min()) / (x.max() - x.min())
    x[:4, :4], x[:4, -4:] = 0, 0.5
    return torch.from_numpy((255 * x).astype(np.uint8)).permute(2, 0, 1).contiguous()


def unit(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy() / 255.0


@pytest.mark.parametrize("side", list(STRENGTHS))
def test_every_corruption_at_every_severity(side: int) -> None:
    assert set(STRENGTHS[side]) == set(CORRUPTIONS)
    image = picture(side)
    before = image.clone()
    for name in CORRUPTIONS:
        assert len(STRENGTHS[side][name]) == 5
        found = [corrupt(image, name, severity, (0, 1)) for severity in range(1, 6)]
        assert all(x.shape == image.shape and x.dtype == torch.uint8 for x in found)
        distance = [float((x.float() - image.float()).abs().mean()) for x in found]
        assert distance[0] > 0
        # One takes colour away before it adds some, others draw new clouds or another map.
        if name not in ("saturate", "fog", "elastic_transform"):
            assert distance[0] < distance[4]
    assert torch.equal(image, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("sides", [(SMALLEST, SMALLEST), (SMALLEST, 12), (50, 31), (130, 120)])
def test_any_size_and_the_same_seed_gives_the_same_image(name: str, sides: tuple[int, int]) -> None:
    image = picture(max(sides))[:, : sides[0], : sides[1]]
    for severity in range(1, 6):
        found = corrupt(image, name, severity, (3,))
        assert found.shape == image.shape and found.dtype == torch.uint8
        assert torch.equal(found, corrupt(image, name, severity, (3,)))


def test_noise_follows_from_seed_corruption_and_severity() -> None:
    image = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    first = corrupt(image, "gaussian_noise", 3, (0, 7))
    assert torch.equal(first, corrupt(image, "gaussian_noise", 3, (0, 7)))
    assert not torch.equal(first, corrupt(image, "gaussian_noise", 3, (0, 8)))
    assert not torch.equal(first, corrupt(image, "gaussian_noise", 3, (1, 7)))
    other = (corrupt(image, "gaussian_noise", 5, (0, 7)).float() - 128) * 0.08 / 0.1  # not the same draw, enlarged
    assert float((other - (first.float() - 128)).abs().mean()) > 5


def test_noises_have_their_spread() -> None:
    x = np.full((200, 200, 3), 0.5)
    assert corruptions.gaussian_noise(x, 0.1, RANDOM).std() == pytest.approx(0.1, rel=0.02)
    assert corruptions.speckle_noise(x, 0.1, RANDOM).std() == pytest.approx(0.05, rel=0.02)
    assert corruptions.shot_noise(x, 50, RANDOM).var() == pytest.approx(0.5 / 50, rel=0.02)
    hit = corruptions.impulse_noise(x, 0.27, RANDOM)
    assert (hit == 1).mean() == pytest.approx(0.135, rel=0.05) and (hit == 0).mean() == pytest.approx(0.135, rel=0.05)
    assert (hit == 0.5).mean() == pytest.approx(0.73, rel=0.02)


@pytest.mark.parametrize("strength", STRENGTHS[224]["saturate"])
def test_colours_equal_hsv(strength: tuple[float, float]) -> None:
    x = unit(picture())
    hsv = rgb_to_hsv(x)
    hsv[..., 1] = np.clip(hsv[..., 1] * strength[0] + strength[1], 0, 1)
    np.testing.assert_allclose(corruptions.saturate(x, strength, RANDOM), hsv_to_rgb(hsv), atol=1e-9)
    hsv = rgb_to_hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + 0.3, 0, 1)
    np.testing.assert_allclose(weather.brightness(x, 0.3, RANDOM), hsv_to_rgb(hsv), atol=1e-9)


@pytest.mark.parametrize("side", [32, 33, 224])
def test_zoom_blur_equals_scipy(side: int) -> None:
    x, total = unit(picture(side)), 0.0
    factors = np.arange(1, 1.31, 0.03)
    for factor in factors:
        kept = int(np.ceil(side / factor))
        top = (side - kept) // 2
        large = ndimage.zoom(x[top : top + kept, top : top + kept], (factor, factor, 1), order=1)
        top = (len(large) - side) // 2
        total = total + large[top : top + side, top : top + side]
    found = blurs.zoom_blur(x, (1.31, 0.03), RANDOM)
    np.testing.assert_allclose(found, (x + total) / (len(factors) + 1), atol=1e-6)


@pytest.mark.parametrize("strength", [(1.5, 0.1), (8, 0.5), (10, 0.5)])
def test_defocus_blur_equals_scipy(strength: tuple[float, float]) -> None:
    x = unit(picture(48))
    expected = ndimage.correlate(x, disk(*strength).numpy()[..., None].astype(float), mode="mirror")
    np.testing.assert_allclose(blurs.defocus_blur(x, strength, RANDOM), expected, atol=1e-5)


def test_disk() -> None:
    side = np.exp(-1 / (2 * 0.4**2))  # of a point, smoothed by three taps
    taps = np.array([side, 1, side]) / (1 + 2 * side)
    np.testing.assert_allclose(disk(0.3, 0.4)[7:10, 7:10].numpy(), np.outer(taps, taps), atol=1e-7)
    flat = disk(3, 0.1)  # too little smoothing to matter: 29 points within radius 3
    assert flat.shape == (17, 17)
    assert float(flat[8, 8]) == pytest.approx(1 / 29, abs=1e-6) and int((flat > 1e-3).sum()) == 29
    assert disk(10, 0.5).shape == (21, 21)


def test_glass_blur_equals_the_authors_loop() -> None:
    x, (sigma, reach, rounds) = unit(picture(20)), (0.4, 2, 2)
    right, down = np.random.default_rng(3).integers(-reach, reach, (2, rounds, 16, 16)).reshape(2, -1).tolist()
    y = (255 * ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")).astype(np.uint8)
    draws = zip(right, down, strict=True)
    for _ in range(rounds):
        for h in range(20 - reach, reach, -1):
            for w in range(20 - reach, reach, -1):
                dx, dy = next(draws)
                y[h, w], y[h + dy, w + dx] = y[h + dy, w + dx], y[h, w]  # reads as a swap, copies the first
    expected = ndimage.gaussian_filter(y / 255, (sigma, sigma, 0), mode="nearest")
    found = blurs.glass_blur(x, (sigma, reach, rounds), np.random.default_rng(3))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_glass_blur_moves_pixels_within_its_reach() -> None:
    rows, columns = np.indices((12, 12))
    x = np.stack([rows, columns, 0 * rows], 2) * 16 / 255 + 0.5 / 255  # a pixel says where it came from
    found = np.rint(255 * blurs.glass_blur(x, (0.05, 1, 1), np.random.default_rng(0))) // 16
    assert set(np.unique(found[..., 0] - rows)) == {-1, 0} == set(np.unique(found[..., 1] - columns))  # not +1
    assert np.array_equal(found[:2, :, 0], rows[:2]) and np.array_equal(found[:, :2, 1], columns[:, :2])


def test_motion_is_half_a_gaussian() -> None:
    x = np.zeros((9, 9, 1))
    x[4, 4] = 1
    weights = np.exp(-(np.arange(3) ** 2) / 2)
    one, two, three = np.rint(255 * weights / weights.sum()).astype(int)
    assert (one, two, three) == (146, 89, 20)

    def found(angle: float) -> dict[tuple[int, int], int]:
        y = motion(x, 1, 1, angle)[..., 0]
        return {(int(h), int(w)): int(y[h, w]) for h, w in np.argwhere(y)}

    assert found(0) == {(4, 4): one, (4, 3): two, (4, 2): three}  # each pixel looks to the right
    assert found(90) == {(4, 4): one, (3, 4): two, (2, 4): three}
    assert found(-90) == {(4, 4): one, (5, 4): two, (6, 4): three}
    assert found(44) == {(4, 4): one, (3, 3): 109}  # two steps of a diagonal end on one pixel
    assert np.unique(motion(np.ones((5, 7, 3)), 20, 15, 30)).tolist() == [255]  # the edge goes on outside


def test_motion_blur_turns_up_to_45_degrees() -> None:
    x = unit(picture())
    angle = np.random.default_rng(5).uniform(-45, 45)
    found = blurs.motion_blur(x, (6, 1.5), np.random.default_rng(5))
    expected = np.zeros_like(x)
    weights = np.exp(-(np.arange(13) ** 2) / (2 * 1.5**2))
    for i, weight in enumerate(weights / weights.sum()):  # the nearest pixel on the line, here by another function
        step = (-i * np.sin(np.radians(angle)), -i * np.cos(np.radians(angle)), 0)
        expected += weight * ndimage.shift(x, np.rint(step), order=0, mode="nearest")
    assert np.array_equal(found, np.rint(255 * expected))


def test_snow() -> None:
    black = weather.snow(np.zeros((24, 30, 3)), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8), np.random.default_rng(0))
    assert np.ptp(black, axis=2).max() == 0 and black.min() >= 0.1 - 1e-12  # grey: (1 - 0.8) x 0.5 and the flakes
    np.testing.assert_allclose(black, np.rot90(black, 2))  # which fall a second time, turned by 180 degrees
    assert len(np.unique(black)) > 20
    red = np.full((9, 9, 3), np.array([1.0, 0, 0]))
    found = weather.snow(red, (-10, 0.1, 1, 0.5, 8, 3, 0.8), RANDOM)  # too cold to snow: only the light is left
    np.testing.assert_allclose(found[4, 4], [1, 0.2 * (1.5 * 0.299 + 0.5), 0.2 * (1.5 * 0.299 + 0.5)])


def test_snow_equals_the_authors_steps() -> None:
    x = unit(picture()) * np.array([1, 0.6, 0.3])
    found = weather.snow(x, (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9), np.random.default_rng(3))
    random = np.random.default_rng(3)
    layer = random.normal(size=(32, 32), loc=0.15, scale=0.3)
    kept = math.ceil(32 / 1.75)
    top = (32 - kept) // 2
    layer = ndimage.zoom(layer[top : top + kept, top : top + kept], 1.75, order=1)
    trim = (len(layer) - 32) // 2
    layer = layer[trim : trim + 32, trim : trim + 32]
    layer[layer < 0.55] = 0
    layer = (np.clip(layer, 0, 1) * 255).astype(np.uint8) / 255
    angle = np.radians(random.uniform(-135, -45))
    weights = np.exp(-(np.arange(21) ** 2) / (2 * 4**2))
    streaks = np.zeros_like(layer)
    for i, weight in enumerate(weights / weights.sum()):
        step = np.rint((-i * np.sin(angle), -i * np.cos(angle)))
        streaks += weight * ndimage.shift(layer, step, order=0, mode="nearest")
    streaks = (np.rint(255 * streaks) / 255)[..., None]
    gray = x @ [0.299, 0.587, 0.114]
    light = 0.9 * x + 0.1 * np.maximum(x, gray[..., None] * 1.5 + 0.5)
    np.testing.assert_allclose(found, light + streaks + np.rot90(streaks, 2), atol=1e-9)


def test_snow_streaks_are_steep() -> None:
    for seed in range(8):
        layer = weather.snow(np.zeros((64, 64, 3)), (0.1, 0.3, 3, 0.5, 10, 4, 1), np.random.default_rng(seed))[..., 0]
        assert np.abs(np.diff(layer, axis=0)).mean() < 1.2 * np.abs(np.diff(layer, axis=1)).mean()


class Draws:
    """In the place of a generator: hands out the given values."""

    def __init__(self, *values: Any) -> None:
        self.values = list(values)
        self.asked: list[tuple[float, float]] = []

    def uniform(self, low: float, high: float, size: tuple[int, ...]) -> Any:
        self.asked.append((low, high))
        return np.broadcast_to(np.asarray(self.values.pop(0), float), size)


def elastic(x: np.ndarray, strength: tuple[float, float, float], *values: Any) -> np.ndarray:
    return corruptions.elastic_transform(x, strength, Draws(*values))  # type: ignore[arg-type]


def test_elastic_transform_without_displacement_is_the_image() -> None:
    x = unit(picture(20))[:, :15]
    np.testing.assert_allclose(corruptions.elastic_transform(x, (0, 0, 0), RANDOM), x, atol=1e-12)


def test_elastic_transform_moves_the_three_points() -> None:
    x = unit(picture())
    moves = [[1, 0], [0, 2], [-1, 1]]  # to the right, down
    y = elastic(x, (0, 0, 2), moves, 0, 0)
    for (w, h), (dx, dy) in zip([(26, 26), (26, 6), (6, 6)], moves, strict=True):  # 32 // 2 +- 32 // 3
        np.testing.assert_allclose(y[h + dy, w + dx], x[h, w], atol=1e-9)
    y = elastic(x, (0, 0, 3), [[3, 0]] * 3, 0, 0)
    np.testing.assert_allclose(y[:, 3:], x[:, :-3], atol=1e-9)
    np.testing.assert_allclose(y[:, :3], x[:, 3:0:-1], atol=1e-9)  # reflected at the border


def test_elastic_transform_displaces_by_smoothed_noise() -> None:
    x = unit(picture())
    y = elastic(x, (2, 1, 0), 0, 1, 0.5)  # even noise: 2 pixels across, 1 down
    np.testing.assert_allclose(y[:-1, :-2], x[1:, 2:], atol=1e-9)
    np.testing.assert_allclose(y[-1, :-2], x[-1, 2:], atol=1e-9)  # reflected with the border pixel
    np.testing.assert_allclose(y[:-1, -1], x[1:, -2], atol=1e-9)
    draws = Draws(0, 0, 0)
    corruptions.elastic_transform(x, (2, 1, 0.3), draws)  # type: ignore[arg-type]
    assert draws.asked == [(-0.3, 0.3), (-1, 1), (-1, 1)]
    field = RANDOM.uniform(-1, 1, (12, 17))
    for sigma in (0, 0.96, 170.8):
        expected = ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3)
        np.testing.assert_allclose(smoothed(field, sigma), expected, atol=1e-12)


def test_pixelate_and_jpeg_equal_pillow() -> None:
    image = picture(40)
    pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    small = pil.resize((26, 26), Image.Resampling.BOX).resize((40, 40), Image.Resampling.BOX)  # int(0.65 x 40)
    assert np.array_equal(corrupt(image, "pixelate", 5, (0,)).permute(1, 2, 0).numpy(), np.asarray(small))
    file = io.BytesIO()
    pil.save(file, "JPEG", quality=58)
    assert np.array_equal(
        corrupt(image, "jpeg_compression", 3, (0,)).permute(1, 2, 0).numpy(), np.asarray(Image.open(file))
    )


def test_fog_adds_clouds_and_keeps_the_brightest_possible_value() -> None:
    x = unit(picture())
    x /= x.max()
    clouds = plasma(32, 1.75, np.random.default_rng(4))
    assert clouds.min() == 0 and clouds.max() == 1
    found = weather.fog(x, (1.5, 1.75), np.random.default_rng(4))
    np.testing.assert_allclose(found, (x + 1.5 * clouds[..., None]) / 2.5, atol=1e-9)
    rough = [float(np.abs(np.diff(plasma(64, decay, np.random.default_rng(0)), axis=0)).mean()) for decay in (3, 1.4)]
    assert rough[0] < rough[1]  # a slower decay leaves more detail


def test_contrast_is_taken_towards_the_mean_of_each_channel() -> None:
    x = unit(picture())
    found = corruptions.contrast(x, 0.25, RANDOM)
    np.testing.assert_allclose(found.mean((0, 1)), x.mean((0, 1)), atol=1e-9)
    np.testing.assert_allclose(found.std((0, 1)), 0.25 * x.std((0, 1)), atol=1e-9)


def test_sets_by_size() -> None:
    assert [nearest_set(side) for side in (16, 45, 46, 119, 120, 384)] == [32, 32, 64, 64, 224, 224]

"""Corruptions against other libraries and their definitions; the robustness evaluator on top of them."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage
from torch import Tensor

from ssl_bench import corruptions
from ssl_bench.backbone import Backbone
from ssl_bench.corruptions import CORRUPTIONS, SMALLEST, STRENGTHS, corrupt, disk, nearest_set, plasma
from ssl_bench.data import Splits, hold_out
from ssl_bench.errors import UserError
from ssl_bench.evaluations.evaluator import Data
from ssl_bench.evaluations.features import FrozenEncoder
from ssl_bench.evaluations.intervals import jackknife_groups, jackknife_metric
from ssl_bench.evaluations.logistic import Logistic
from ssl_bench.evaluations.robustness import MAIN, Robustness, cut, relative_drop
from ssl_bench.images import pack
from ssl_bench.views import eval_images

RANDOM = np.random.default_rng(0)


def picture(side: int = 32, seed: int = 0) -> Tensor:
    """A smooth random image with a black and a gray corner."""
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
        if name not in ("saturate", "fog"):  # one takes colour away before it adds some, the other draws new clouds
            assert distance[0] < distance[4]
    assert torch.equal(image, before)


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
    np.testing.assert_allclose(corruptions.brightness(x, 0.3, RANDOM), hsv_to_rgb(hsv), atol=1e-9)


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
    found = corruptions.zoom_blur(x, (1.31, 0.03), RANDOM)
    np.testing.assert_allclose(found, (x + total) / (len(factors) + 1), atol=1e-6)


@pytest.mark.parametrize("strength", [(1.5, 0.1), (8, 0.5), (10, 0.5)])
def test_defocus_blur_equals_scipy(strength: tuple[float, float]) -> None:
    x = unit(picture(48))
    expected = ndimage.correlate(x, disk(*strength).numpy()[..., None].astype(float), mode="mirror")
    np.testing.assert_allclose(corruptions.defocus_blur(x, strength, RANDOM), expected, atol=1e-5)


def test_disk() -> None:
    side = np.exp(-1 / (2 * 0.4**2))  # of a point, smoothed by three taps
    taps = np.array([side, 1, side]) / (1 + 2 * side)
    np.testing.assert_allclose(disk(0.3, 0.4)[7:10, 7:10].numpy(), np.outer(taps, taps), atol=1e-7)
    flat = disk(3, 0.1)  # too little smoothing to matter: 29 points within radius 3
    assert flat.shape == (17, 17)
    assert float(flat[8, 8]) == pytest.approx(1 / 29, abs=1e-6) and int((flat > 1e-3).sum()) == 29
    assert disk(10, 0.5).shape == (21, 21)


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
    found = corruptions.fog(x, (1.5, 1.75), np.random.default_rng(4))
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


# The evaluator --------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tiny_data: Splits) -> Data:
    return Data(tiny_data.train, *hold_out(tiny_data.train), tiny_data.test)


def test_run(data: Data, nano: Backbone) -> None:
    encoder = FrozenEncoder(nano)
    weights = {name: value.clone() for name, value in nano.state_dict().items()}
    judge = Robustness(C=(0.01, 1.0))
    result = judge.run(encoder, data)
    again = Robustness(C=(0.01, 1.0)).run(FrozenEncoder(nano), data)
    assert result.metrics == again.metrics and result.headline == "corrupted_top1"
    assert all(torch.equal(weights[name], value) for name, value in nano.state_dict().items())
    assert json.loads(json.dumps(judge.settings()))["severities"] == [1, 3, 5]
    json.dumps(result.chosen, allow_nan=False)
    values = {name: metric.value for name, metric in result.metrics.items()}
    assert values["corrupted_top1"] == pytest.approx(np.mean([values[name] for name in MAIN]), abs=1e-9)
    clean = Logistic(C=(0.01, 1.0)).run(FrozenEncoder(nano), data)
    assert values["clean_top1"] == pytest.approx(clean.metrics["top1"].value, abs=1e-9)
    assert values["relative_drop"] == pytest.approx(100 * (1 - values["corrupted_top1"] / values["clean_top1"]))
    assert all(m.n == 24 and m.low <= m.value <= m.high for m in result.metrics.values())
    assert 100 * result.correct.mean() == pytest.approx(values["corrupted_top1"]) and len(MAIN) == 10


def test_fewer_images_are_the_same_images(data: Data, nano: Backbone) -> None:
    judge = Robustness(corruptions=("impulse_noise",), severities=(5,), images=12, C=(0.1,))
    shown = judge._shown(data.test)
    assert torch.bincount(shown.labels).tolist() == [4, 4, 4] and shown.split == "test"
    assert shown.origin is not None
    (few,) = judge._corrupted(shown, (16, 16))
    (every,) = judge._corrupted(data.test, (16, 16))
    assert few.decoded is not None and every.decoded is not None
    assert torch.equal(few.decoded, every.decoded[shown.origin[1]])
    assert few.fingerprint != every.fingerprint and few.origin is None
    assert judge.run(FrozenEncoder(nano), data).metrics["impulse_noise"].n == 12


def test_images_are_corrupted_at_the_size_of_the_encoder() -> None:
    assert cut(picture(32), (16, 16)).shape == (3, 16, 16)
    assert torch.equal(cut(picture(32), (224, 224)), picture(32))
    assert cut(torch.zeros(3, 30, 40, dtype=torch.uint8), (224, 224)).shape == (3, 30, 30)
    # What an encoder sees of a small oblong is what it sees of the whole: 256/224 counts once.
    oblong = torch.arange(0, 240, 4, dtype=torch.uint8).expand(3, 30, 60)
    whole, middle = (eval_images(x[None], 224) for x in (oblong, cut(oblong, (224, 224))))
    assert float((whole - middle).abs().mean()) < 0.01
    assert cut(picture(64), (16, 32)).shape == (3, 16, 32)


@pytest.mark.parametrize("sides", [(12, 14), (12, 20, 40)])
def test_images_of_several_sizes_smaller_than_the_encoder_takes(
    data: Data, nano: Backbone, sides: tuple[int, ...]
) -> None:
    pixels = [picture(side, seed)[:, :, : side - seed % 3] for seed, side in enumerate(sides * (24 // len(sides)))]
    test = replace(data.test, images=pack(pixels), fingerprint="9" * 64)
    judge = Robustness(corruptions=("defocus_blur", "jpeg_compression"), severities=(5,), C=(1.0,))
    encoder = FrozenEncoder(nano, workers=0)
    result = judge.run(encoder, replace(data, test=test))
    assert result.metrics["defocus_blur"].n == 24


def test_images_too_small_to_corrupt_are_named(data: Data, nano: Backbone) -> None:
    pixels = torch.zeros(24, 3, SMALLEST - 1, 12, dtype=torch.uint8)
    pixels[:12] = 200
    test = replace(data.test, images=pixels, fingerprint="8" * 64)
    with pytest.raises(UserError, match="blobs has images of 8 px; blurs need 9 or more"):
        Robustness(C=(1.0,)).run(FrozenEncoder(nano), replace(data, test=test))


def test_relative_drop() -> None:
    random = torch.Generator().manual_seed(0)
    clean = 100.0 * (torch.rand(60, generator=random) < 0.8).double()
    corrupted = 100.0 * torch.rand(60, generator=random).double()
    groups = jackknife_groups(60)
    left = [100 * (1 - float(corrupted[groups != g].mean() / clean[groups != g].mean())) for g in range(20)]
    value = 100 * (1 - float(corrupted.mean() / clean.mean()))
    expected = jackknife_metric(value, left, 60, (-1e9, 100.0))
    found = relative_drop(clean, corrupted)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert relative_drop(torch.zeros(5), torch.zeros(5)).value == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"corruptions": ("frost",)}, "unknown corruption 'frost'"),
        ({"corruptions": ()}, "unknown corruption"),
        ({"severities": (0,)}, "severities must be some of 1 to 5"),
        ({"severities": ()}, "severities must be some of 1 to 5"),
        ({"images": 0}, "images must be at least 1"),
        ({"C": ()}, "C must be positive"),
    ],
)
def test_mistakes(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Robustness(**settings)  # type: ignore[arg-type]

"""The robustness evaluator; the corruptions themselves are tested in `test_corruptions.py`."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_bench.backbones.vit import ViT
from ssl_bench.data.corruptions import SMALLEST
from ssl_bench.data.datasets import Splits, hold_out
from ssl_bench.data.images import pack
from ssl_bench.evaluations.evaluator import Data
from ssl_bench.evaluations.frozen.logistic import Logistic
from ssl_bench.evaluations.frozen.robustness import MAIN, Robustness, cut, relative_drop
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.metrics.intervals import jackknife_groups, jackknife_metric
from ssl_bench.utils.errors import UserError
from ssl_bench.views.evaluation import eval_images


def picture(side: int = 32, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, side, side), dtype=np.uint8))


def test_the_main_corruptions_are_the_paper_s_without_frost() -> None:
    noise, blur = ["gaussian", "shot", "impulse"], ["defocus", "glass", "motion", "zoom"]
    weather, digital = ["snow", "fog", "brightness"], ["contrast", "elastic_transform", "pixelate", "jpeg_compression"]
    assert list(MAIN) == [f"{x}_noise" for x in noise] + [f"{x}_blur" for x in blur] + weather + digital


@pytest.fixture
def data(tiny_data: Splits) -> Data:
    return Data(tiny_data.train, *hold_out(tiny_data.train), tiny_data.test)


def test_run(data: Data, nano: ViT) -> None:
    encoder = FrozenEncoder(nano)
    weights = {name: value.clone() for name, value in nano.state_dict().items()}
    evaluator = Robustness(C=(0.01, 1.0))
    result = evaluator.run(encoder, data)
    again = Robustness(C=(0.01, 1.0)).run(FrozenEncoder(nano), data)
    assert result.metrics == again.metrics and result.headline == "corrupted_top1"
    assert all(torch.equal(weights[name], value) for name, value in nano.state_dict().items())
    assert json.loads(json.dumps(evaluator.settings()))["severities"] == [1, 3, 5]
    json.dumps(result.chosen, allow_nan=False)
    values = {name: metric.value for name, metric in result.metrics.items()}
    assert values["corrupted_top1"] == pytest.approx(np.mean([values[name] for name in MAIN]), abs=1e-9)
    clean = Logistic(C=(0.01, 1.0)).run(FrozenEncoder(nano), data)
    assert values["clean_top1"] == pytest.approx(clean.metrics["top1"].value, abs=1e-9)
    assert values["relative_drop"] == pytest.approx(100 * (1 - values["corrupted_top1"] / values["clean_top1"]))
    assert all(m.n == 24 and m.low <= m.value <= m.high for m in result.metrics.values())
    assert 100 * result.correct.mean() == pytest.approx(values["corrupted_top1"])


def test_fewer_images_are_the_same_images(data: Data, nano: ViT) -> None:
    evaluator = Robustness(corruptions=("impulse_noise",), severities=(5,), images=12, C=(0.1,))
    shown = evaluator._shown(data.test)
    assert torch.bincount(shown.labels).tolist() == [4, 4, 4] and shown.split == "test"
    assert shown.origin is not None
    (few,) = evaluator._corrupted(shown, (16, 16))
    (every,) = evaluator._corrupted(data.test, (16, 16))
    assert few.decoded is not None and every.decoded is not None
    assert torch.equal(few.decoded, every.decoded[shown.origin[1]])
    assert few.fingerprint != every.fingerprint and few.origin is None
    assert evaluator.run(FrozenEncoder(nano), data).metrics["impulse_noise"].n == 12


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
def test_images_of_several_sizes_smaller_than_the_encoder_takes(data: Data, nano: ViT, sides: tuple[int, ...]) -> None:
    pixels = [picture(side, seed)[:, :, : side - seed % 3] for seed, side in enumerate(sides * (24 // len(sides)))]
    test = replace(data.test, images=pack(pixels), fingerprint="9" * 64)
    evaluator = Robustness(corruptions=("defocus_blur", "jpeg_compression"), severities=(5,), C=(1.0,))
    encoder = FrozenEncoder(nano, workers=0)
    result = evaluator.run(encoder, replace(data, test=test))
    assert result.metrics["defocus_blur"].n == 24


def test_images_too_small_to_corrupt_are_named(data: Data, nano: ViT) -> None:
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

"""Label-free diagnostics against their definitions, known predictions, and collapsed encoders; intervals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.evaluator import Data
from ssl_bench.evaluations.frozen.diagnostics import Diagnostics, alignment, spectrum, uniformity
from ssl_bench.evaluations.solvers.neighbours import normalize
from ssl_bench.metrics.intervals import jackknife_groups, jackknife_metric, mean_metric, repeated_metric
from ssl_bench.utils.errors import RunError, UserError


def anisotropic(n: int = 400, dim: int = 12, seed: int = 0) -> Tensor:
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return x * torch.logspace(0, -2, dim) + 0.5


def test_spectrum_equals_the_definitions() -> None:
    x = anisotropic()
    found = spectrum(x)
    s = np.linalg.svd(x.double().numpy(), compute_uv=False)
    p = s / s.sum() + 1e-7
    assert found["rankme"].value == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    centred = x.double().numpy() - x.double().numpy().mean(0)
    p = np.linalg.svd(centred, compute_uv=False)
    p = p / p.sum()
    assert found["effective_rank"].value == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    assert found["feature_std"].value == pytest.approx(float(unit.std(0).mean()) * math.sqrt(12), rel=1e-6)
    for metric in found.values():
        assert metric.low < metric.value < metric.high


def test_known_ranks() -> None:
    fill = torch.randn(20000, 16, generator=torch.Generator().manual_seed(0))
    assert spectrum(fill)["effective_rank"].value == pytest.approx(16, abs=0.02)
    assert spectrum(fill)["feature_std"].value == pytest.approx(1, abs=0.02)
    plane = fill[:, :2] @ torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    assert spectrum(plane)["effective_rank"].value <= 2
    assert spectrum(plane)["rankme"].value <= 2.01


def test_uniformity_and_alignment_equal_the_definitions() -> None:
    x, y = normalize(anisotropic(seed=1)), normalize(anisotropic(seed=2))
    distance = torch.pdist(x.double()) ** 2
    assert uniformity(x).value == pytest.approx(float((-2 * distance).exp().mean().log()), abs=1e-6)
    expected = float(((x - y).double() ** 2).sum(1).mean())
    assert alignment(x, y).value == pytest.approx(expected, abs=1e-6)
    assert uniformity(x[:1].repeat(9, 1)).value == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.eye(40)).value == pytest.approx(-4, abs=1e-6)  # all distances are sqrt(2)
    left = [
        float((-2 * torch.pdist(x[jackknife_groups(400) != g].double()) ** 2).exp().mean().log()) for g in range(20)
    ]
    oracle = jackknife_metric(uniformity(x).value, left, 400, (-8, 0))
    assert uniformity(x).low == pytest.approx(oracle.low, abs=1e-6)


class Pixels:
    """Features that are the average pixels of a grid; asks for views work as for any images."""

    poolings = ("cls", "mean")

    def __init__(self, collapse: float = 1.0) -> None:
        self.keep, self.asked = collapse, list[ImageSet]()

    def features(self, images: ImageSet, poolings: object) -> dict[str, Tensor]:
        self.asked.append(images)
        assert isinstance(images.images, Tensor)
        x = torch.nn.functional.adaptive_avg_pool2d(images.images.float() / 255, 4).flatten(1)
        return {"cls": 5 + self.keep * x, "mean": x}


def data(n: int = 120, constant: bool = False) -> Data:
    def split(name: str, count: int, seed: int) -> ImageSet:
        coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        pixels = (255 * torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")).byte()
        if constant:
            pixels = pixels.float().mean((2, 3), keepdim=True).expand(-1, -1, 16, 16).byte()
        return ImageSet("toy", name, torch.zeros(count).long(), ("a",), f"{seed:064x}", pixels)

    train = split("train", 40, 1)
    order = torch.arange(40)
    return Data(train, train.subset(order[10:], "train"), train.subset(order[:10], "dev"), split("test", n, 2))


def test_row_reports_every_pooling_and_repeats() -> None:
    encoder = Pixels()
    result = Diagnostics(images=50).run(encoder, data())
    assert result.headline == "rankme"
    assert result.pooling == "cls"
    names = ["rankme", "effective_rank", "feature_std", "uniformity", "alignment"]
    assert list(result.metrics) == names + [f"{p}/{name}" for p in ("cls", "mean") for name in names]
    assert result.metrics["mean/alignment"].n == 50
    assert all(math.isfinite(x) for m in result.metrics.values() for x in (m.low, m.value, m.high))
    assert all(images.split == "test" for images in encoder.asked)
    json.dumps(result.chosen)
    again = Diagnostics(images=50).run(Pixels(), data())
    assert again.metrics == result.metrics
    assert Diagnostics(images=50, seed=1).run(Pixels(), data()).metrics["alignment"] != result.metrics["alignment"]
    assert "alignment" not in Diagnostics(images=0).run(Pixels(), data()).metrics


def test_views_are_two_other_draws_with_names_of_their_own() -> None:
    encoder, given = Pixels(), data()
    Diagnostics(images=30).run(encoder, given)
    whole, first, second = encoder.asked
    assert len({whole.fingerprint, first.fingerprint, second.fingerprint}) == 3  # caches go by the fingerprint
    assert first.origin is None
    assert first.images.shape == second.images.shape == (30, 3, 16, 16)  # type: ignore[union-attr]
    assert not torch.equal(first.images, second.images)  # type: ignore[arg-type]


def test_alignment_is_zero_where_crops_change_nothing() -> None:
    assert Diagnostics().run(Pixels(), data(constant=True)).metrics["mean/alignment"].value == pytest.approx(
        0, abs=1e-4
    )


def test_collapsed_encoders_are_named() -> None:
    assert Diagnostics(images=0).run(Pixels(), data()).chosen["collapsed"] == {}
    near = Diagnostics(images=0).run(Pixels(1e-3), data())
    assert near.chosen["collapsed"] == {"cls": [near.chosen["collapsed"]["cls"][0]]}  # type: ignore[index]
    assert "the features of all images point the same way" in near.chosen["collapsed"]["cls"][0]  # type: ignore[index]
    with pytest.raises(RunError, match="the encoder has collapsed"):
        Diagnostics(images=0).run(Pixels(0.0), data())

    class Aggregate(Pixels):
        def features(self, images: ImageSet, poolings: object) -> dict[str, Tensor]:
            x = super().features(images, poolings)["mean"]
            return {"cls": x[:, :1] * torch.ones(48) + 1e-4 * x, "mean": x}

    assert "lie along a line" in Diagnostics(images=0).run(Aggregate(), data()).chosen["collapsed"]["cls"][0]  # type: ignore[index]


def test_scale_does_not_matter_and_duplicates_change_little() -> None:
    x = anisotropic()
    for name, metric in spectrum(x).items():
        assert spectrum(100 * x)[name].value == pytest.approx(metric.value, rel=1e-5)
        assert spectrum(x.repeat(2, 1))[name].value == pytest.approx(metric.value, rel=2e-3)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_images_give_finite_numbers(n: int) -> None:
    for metric in (*spectrum(anisotropic(n)).values(), uniformity(normalize(anisotropic(n)))):
        assert all(math.isfinite(x) for x in (metric.low, metric.value, metric.high))
        assert metric.low <= metric.value <= metric.high


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UserError, match="must not be negative"):
        Diagnostics(images=-1)
    with pytest.raises(UserError, match="scale"):
        Diagnostics(scale=(0.5, 2.0))


@pytest.mark.parametrize("kind", ["jackknife", "mean", "repeated"])
def test_intervals_hold_the_truth_19_times_in_20(kind: str) -> None:
    generator, hits = torch.Generator().manual_seed(0), 0
    for _ in range(400):
        x = 50 + 10 * torch.randn(60, generator=generator)
        if kind == "jackknife":
            groups = jackknife_groups(60)
            left = [float((x[groups != g] ** 2).mean().sqrt()) for g in range(20)]
            metric, truth = jackknife_metric(float((x**2).mean().sqrt()), left, 60, (0, 100)), math.sqrt(2600)
        elif kind == "mean":
            metric, truth = mean_metric(x), 50.0
        else:
            scores = x + 3 * torch.randn(20, 1, generator=generator)  # every image shares its episode's luck
            metric, truth = repeated_metric(scores.mean(1), scores.mean(0)), 50.0
        hits += metric.low <= truth <= metric.high
    assert 0.92 < hits / 400 < 0.985

"""Views against torchvision's per-image transforms: exact for given parameters, in distribution for the draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as tv
from PIL import Image, ImageFilter
from scipy import stats
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torchvision.transforms import ColorJitter, RandomResizedCrop

from ssl_bench.utils.errors import UserError
from ssl_bench.views import execution as D
from ssl_bench.views import image_ops as imageops
from ssl_bench.views import view as V
from ssl_bench.views.evaluation import eval_images, resize_crop
from ssl_bench.views.make import make_views, view_images
from ssl_bench.views.view import View, describe

JITTER = {"jitter": (0.4, 0.4, 0.2, 0.1), "jitter_p": 0.8, "grayscale": 0.2}
MOCO_V3_SECOND = View(32, interpolation="bilinear", blur=0.1, solarize=0.2, **JITTER)  # the paper's second view
PLAIN = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
INTERPOLATION = {"bilinear": T.InterpolationMode.BILINEAR, "bicubic": T.InterpolationMode.BICUBIC}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(n: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    """uint8 (n, 3, height, width): smooth colour fields plus noise, with as much correlation as small photographs."""
    coarse = torch.rand(n, 3, 5, 5, generator=seeded(seed))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    noise = torch.randn(n, 3, height, width, generator=seeded(seed + 1)) * 0.05
    return ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8)


def ramps(n: int, side: int = 64) -> Tensor:
    """Copies of an image whose red is the column and whose green is the row, so that a crop shows where it was."""
    column = torch.arange(side, dtype=torch.uint8).expand(side, side)
    return torch.stack([column, column.T, torch.full_like(column, 77)]).expand(n, 3, side, side)


# Exactness for given parameters


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("box", [(3, 5, 20, 9), (0, 0, 40, 36), (10, 10, 4, 5), (0, 7, 33, 25)])
@pytest.mark.parametrize("size", [12, 32, 48])
def test_crop_is_torchvision_resized_crop(interpolation: str, box: tuple[int, int, int, int], size: int) -> None:
    images = photos(2, 40, 36)
    view = View(size, interpolation=interpolation)
    top, left, height, width = (torch.tensor([float(side)] * 2) for side in box)
    flip = torch.tensor([False, True])
    rest = [torch.zeros(2)] * 6
    out = torch.empty(2, 3, size, size)
    D._crop(images, view, D.CropParameters(top, left, height, width, flip, *rest), out)
    out[1] = tv.horizontal_flip(out[1])
    crop = partial(tv.resized_crop, size=[size, size], interpolation=INTERPOLATION[interpolation])
    difference = (out - torch.stack([on_pil(crop, image, *box) for image in images])).abs()
    assert difference.max() <= 2 and difference.mean() < 0.4  # each pass rounds, and PIL chooses their order


def drawn(views: tuple[View, ...], batch: int, height: int, width: int, generator: torch.Generator) -> D.CropParameters:
    """The parameters of the views of a batch."""
    return D.parameters(views, D.draw(views, batch, generator), height, width)


def view_image(image: Tensor, views: Sequence[View], generator: torch.Generator | int) -> list[Tensor]:
    """The views of one image, by a generator or a seed."""
    return view_images([image], views, [seeded(generator) if isinstance(generator, int) else generator])[0]


def on_pil(operation: Callable[..., Image.Image], image: Tensor, *arguments: Any) -> Tensor:
    """A torchvision operation on an 8-bit PIL image, as the authors' pipelines have it: (3, H, W) levels, float32."""
    return tv.pil_to_tensor(operation(tv.to_pil_image(image), *arguments)).float()


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (imageops.adjust_brightness, tv.adjust_brightness),
        (imageops.adjust_contrast, tv.adjust_contrast),
        (imageops.adjust_saturation, tv.adjust_saturation),
    ],
)
def test_colour_operation_is_that_on_pil_images(
    ours: Callable[[Tensor, Tensor], Tensor], reference: Callable[[Image.Image, float], Image.Image]
) -> None:
    images = photos(60, 24, 24)
    factors = torch.linspace(0, 2, 60)[torch.randperm(60, generator=seeded())]
    expected = torch.stack([on_pil(reference, x, f) for x, f in zip(images, factors.tolist(), strict=True)])
    difference = ours(images.float(), factors) - expected
    assert difference.abs().max() <= 1 and (difference != 0).float().mean() < 5e-3  # sums of floats at whole levels


def test_hue_is_torchvisions_in_float() -> None:
    x = torch.rand(40, 3, 8, 8, generator=seeded())
    x[0] = x[0, :1]  # gray
    x[1, 0], x[2, 1], x[3, 2], x[4] = 1.0, 1.0, 0.0, 0.0  # ties and extremes
    x[5, 1] = x[5, 0]
    x[6, 2] = x[6, 1]
    factors = torch.linspace(-0.5, 0.5, 40)[torch.randperm(40, generator=seeded())]
    expected = torch.stack([tv.adjust_hue(image, float(factor)) for image, factor in zip(x, factors, strict=True)])
    torch.testing.assert_close(imageops.adjust_hue(255 * x, factors) / 255, expected, atol=3e-6, rtol=0)


@pytest.mark.parametrize(("strengths", "rest"), [((0.4, 0.4, 0.4, 0.0), 0.02), ((0.4, 0.4, 0.2, 0.1), 1.0)])
def test_jitter_against_pil_images(strengths: tuple[float, ...], rest: float) -> None:
    """MoCo v3's and DINO's: less than a tenth of a level darker than PIL, whose hue has 8 bits; BEiT's: equal."""
    images, operations = photos(200), (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    view = View(32, jitter=strengths, jitter_p=1.0, **PLAIN)  # type: ignore[arg-type]
    draw = D.CropParameters(*(field[0] for field in drawn((view,), 200, 32, 32, seeded(5))))
    out = 255 * make_views(images, [view], seeded(5))[0]
    expected = []
    for image, order, factors in zip(images, draw.order.tolist(), draw.factors.tolist(), strict=True):
        for index in (i for i in order if strengths[i]):
            image = on_pil(operations[index], image.to(torch.uint8), factors[index])
        expected.append(image)
    difference = out - torch.stack(expected)
    assert difference.mean().abs() < 0.15 * rest and difference.abs().mean() < rest


def test_blur_is_gaussian_with_repeated_border() -> None:
    x = torch.rand(12, 3, 24, 24, generator=seeded())
    sigma = torch.linspace(0.1, 2.0, 12)
    for image, s, blurred in zip(x, sigma.tolist(), imageops.gaussian_blur(x, sigma), strict=True):
        expected = gaussian_filter(image.numpy(), (0, s, s), mode="nearest", truncate=10)
        torch.testing.assert_close(blurred, torch.from_numpy(expected), atol=2e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.0, 2.0])
def test_blur_of_one_image_is_that_of_a_batch(sigma: float) -> None:
    x = torch.rand(1, 3, 24, 24, generator=seeded())
    torch.testing.assert_close(
        imageops.blur_one(x, sigma), imageops.gaussian_blur(x, torch.tensor([sigma])), atol=1e-4, rtol=0
    )


def test_blur_is_close_to_pil() -> None:
    image = photos(1, 64, 64)[0]
    pil = tv.pil_to_tensor(tv.to_pil_image(image).filter(ImageFilter.GaussianBlur(1.5)))
    ours = imageops.gaussian_blur(image[None] / 255, torch.tensor([1.5]))[0] * 255
    assert (ours - pil).abs().mean() < 1.0  # levels; PIL approximates the Gaussian by three box filters


def test_grayscale_and_solarize_are_torchvisions() -> None:
    images = photos(4)
    gray = make_views(images, [View(32, grayscale=1.0, **PLAIN)], seeded())[0]
    on_pil = torch.stack([tv.pil_to_tensor(tv.rgb_to_grayscale(tv.to_pil_image(image), 3)) for image in images])
    torch.testing.assert_close(gray, on_pil / 255, atol=1e-6, rtol=0)
    solarized = make_views(images, [View(32, solarize=1.0, **PLAIN)], seeded())[0]
    torch.testing.assert_close(solarized, tv.solarize(images, 128) / 255, atol=1e-6, rtol=0)


def test_order_of_jitter_is_applied_as_drawn() -> None:
    """The result of every image is the chain of the operations in its own order."""
    images = photos(60)
    view = View(32, jitter=(0.8, 0.8, 0.8, 0.3), jitter_p=0.7, **PLAIN)
    draw = D.CropParameters(*(field[0] for field in drawn((view,), 60, 32, 32, seeded(5))))
    out = make_views(images, [view], seeded(5))[0]
    for image, result, order, factors in zip(images, out, draw.order.tolist(), draw.factors, strict=True):
        expected = image[None].float()
        for index in order:
            if index >= 0:
                expected = imageops.COLOUR[index](expected, factors[index, None])
        torch.testing.assert_close(255 * result, expected[0], atol=1e-3, rtol=0)
    assert len({tuple(order) for order in draw.order.tolist()}) > 15


def test_masked_execution_equals_the_grouped_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of CUDA devices, which may not ask how many images were chosen, gives what the CPU path gives."""
    images = photos(40)
    expected = make_views(images, [MOCO_V3_SECOND], seeded())[0]
    monkeypatch.setattr(D, "on_host", lambda x: False)
    torch.testing.assert_close(make_views(images, [MOCO_V3_SECOND], seeded())[0], expected, atol=1e-5, rtol=0)


def test_batched_execution_never_looks_at_values() -> None:
    """Meta tensors have no values, so whatever would wait for a CUDA device fails on them."""
    draw = D.CropParameters(*(field[0].to("meta") for field in drawn((MOCO_V3_SECOND,), 5, 32, 32, seeded())))
    out = D.run(photos(5).to("meta"), [MOCO_V3_SECOND], draw)
    assert out.shape == (1, 5, 3, 32, 32)


# Distribution of the draws


def boxes(images: Tensor, crop: RandomResizedCrop, n: int) -> Tensor:
    return torch.tensor([crop.get_params(images[0], list(crop.scale), list(crop.ratio)) for _ in range(n)]).float()


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(32, 32, (0.08, 1.0)), (48, 64, (0.2, 1.0)), (16, 90, (0.5, 1.0)), (90, 16, (0.05, 0.4))],
)
def test_boxes_are_distributed_as_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    n = 4000
    torch.manual_seed(0)
    reference = boxes(torch.empty(1, 3, height, width), RandomResizedCrop(32, scale), n)
    draw = drawn((View(32, scale=scale),), n, height, width, seeded())
    ours = torch.stack(draw[:4], -1)[0]
    top, left, h, w = ours.unbind(1)
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    assert torch.equal(ours, ours.round())
    r_top, r_left, r_h, r_w = reference.unbind(1)
    for a, b in [(h * w, r_h * r_w), (w / h, r_w / r_h), (top, r_top), (left, r_left), (h, r_h)]:
        assert stats.ks_2samp(a.numpy(), b.numpy()).pvalue > 1e-3


def test_positions_cover_the_whole_range() -> None:
    draw = drawn((View(32, scale=(0.25, 0.25), ratio=(1.0, 1.0)),), 5000, 8, 8, seeded())
    for start in (draw.top, draw.left):
        counts = start[0].long().bincount(minlength=5)
        assert len(counts) == 5
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_rates_and_factors() -> None:
    n = 20000
    draw = drawn((MOCO_V3_SECOND,), n, 32, 32, seeded(1))
    chances = {"flip": 0.5, "gray": 0.2, "blur": 0.1, "solarize": 0.2}
    fields = draw._asdict()
    for name, p in chances.items():
        assert stats.binomtest(int(fields[name].sum()), n, p).pvalue > 1e-3, name
    jittered = draw.order[0, :, 0] >= 0
    assert stats.binomtest(int(jittered.sum()), n, 0.8).pvalue > 1e-3
    assert ((draw.order[0] >= 0).all(-1) == jittered).all()
    orders = (draw.order[0, jittered] * torch.tensor([64, 16, 4, 1])).sum(1).unique(return_counts=True)[1]
    assert len(orders) == 24
    assert stats.chisquare(orders.numpy()).pvalue > 1e-3
    jitter = ColorJitter(0.4, 0.4, 0.2, 0.1)
    torch.manual_seed(0)
    reference = [
        jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)[1:] for _ in range(4000)
    ]
    for index, column in enumerate(zip(*reference, strict=True)):
        assert stats.ks_2samp(draw.factors[0, :4000, index].numpy(), column).pvalue > 1e-3
    assert stats.kstest(draw.sigma[0].numpy(), stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3
    # no draw follows another
    together = torch.stack([draw.flip[0], jittered, draw.gray[0], draw.blur[0], draw.solarize[0]]).float()
    together = torch.cat([together, draw.factors[0].T, draw.top, draw.left, draw.sigma])
    correlation = together.corrcoef().fill_diagonal_(0)
    correlation[9, 10] = correlation[10, 9] = 0  # top and left both shrink as the crop grows
    assert correlation.abs().max() < 0.035  # 5 standard errors


def official(view: View) -> Callable[[Image.Image], Tensor]:
    """MoCo v3's pipeline as its authors build it: torchvision transforms and PIL's blur on PIL images."""

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(1).uniform_(*view.blur_sigma))))

    return T.Compose(
        [
            T.RandomResizedCrop(view.size, view.scale, view.ratio, INTERPOLATION[view.interpolation]),
            T.RandomApply([T.ColorJitter(*view.jitter)], view.jitter_p),
            T.RandomGrayscale(view.grayscale),
            T.RandomApply([T.Lambda(blur)], view.blur),
            T.RandomSolarize(128, view.solarize),
            T.RandomHorizontalFlip(view.flip),
            T.PILToTensor(),
            T.ToDtype(torch.float32, scale=True),
            T.Normalize(view.mean, view.std),
        ]
    )


def test_pixels_are_distributed_as_torchvisions() -> None:
    """The second view of MoCo v3 by the official pipeline, by `make_views` and by `view_image`."""
    n = 3000
    images = photos(n)
    torch.manual_seed(0)
    transform = official(MOCO_V3_SECOND)
    generator = seeded(1)
    samples = {
        "official": torch.stack([transform(tv.to_pil_image(image)) for image in images]),
        "batched": make_views(images, [MOCO_V3_SECOND], seeded())[0],
        "one by one": torch.stack([view_image(image, [MOCO_V3_SECOND], generator)[0] for image in images]),
    }
    statistics = {
        "mean of a channel": lambda x: x.mean((2, 3))[:, 0],
        "contrast": lambda x: x.std((1, 2, 3)),
        "detail": lambda x: (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3)),
        "colourfulness": lambda x: (x[:, 0] - x[:, 2]).abs().mean((1, 2)),
        "a pixel": lambda x: x[:, 1, 3, 20],
    }
    for what, statistic in statistics.items():
        reference = statistic(samples["official"])
        for name in ("batched", "one by one"):
            value = statistic(samples[name])
            error = (value.var() / n + reference.var() / n).sqrt()
            assert (value.mean() - reference.mean()).abs() < 4 * error, (what, name)
            assert stats.ks_2samp(value.numpy(), reference.numpy()).pvalue > 1e-4, (what, name)


def test_view_image_draws_what_make_views_draws() -> None:
    """Same generator, same crops: only the rounding of the crop to 8 bits tells the two apart."""
    image = photos(1, 80, 60)[0]
    views = [replace(MOCO_V3_SECOND, solarize=0.0, blur=0.5, count=8), View(16, scale=(0.2, 1.0), count=4)]
    batched = make_views(image[None], views, seeded(3))
    single = view_image(image, views, 3)
    assert [tuple(x.shape) for x in single] == [(3, 32, 32)] * 8 + [(3, 16, 16)] * 4
    for a, b in zip(batched, single, strict=True):
        difference = (a[0] - b).abs()
        # A level is 0.017 to 0.019 after normalisation. The hue of nearly gray pixels magnifies the rounding.
        assert difference.mean() < 0.02
        assert difference.max() < 0.2


# Behaviour


def test_generator_decides_everything() -> None:
    images = photos(6)
    views = [MOCO_V3_SECOND, View(16, count=3)]
    first, again, other = (make_views(images, views, seeded(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    generator = seeded(3)
    make_views(images, views, generator)
    assert not torch.equal(make_views(images, views, generator)[0], first[0])
    single, single_again = view_image(images[0], views, 5), view_image(images[0], views, seeded(5))
    assert all(torch.equal(a, b) for a, b in zip(single, single_again, strict=True))


def test_images_drawn_together_are_those_drawn_one_by_one() -> None:
    images = [photos(1, 20 + 9 * i, 50 - 4 * i)[0] for i in range(7)]
    views = [MOCO_V3_SECOND, View(16, scale=(0.05, 0.4), count=3)]
    together = view_images(images, views, [seeded(seed) for seed in range(7)])
    for seed, (image, found) in enumerate(zip(images, together, strict=True)):
        assert all(torch.equal(a, b) for a, b in zip(found, view_image(image, views, seed), strict=True))


def test_every_image_and_every_crop_has_its_own_draw() -> None:
    crops = make_views(ramps(16), [View(8, scale=(0.1, 0.5), flip=0.0, count=4)], seeded())
    assert len(crops) == 4
    corners = torch.cat([crop[:, :2, 0, 0] for crop in crops])
    assert len(corners.unique(dim=0)) > 60  # whole levels; a few may meet


def test_crops_come_in_the_order_of_the_views() -> None:
    views = [View(32, **PLAIN), View(16, **PLAIN, count=2), View(32, solarize=1.0, **PLAIN)]
    images = photos(3)
    first, local, other_local, last = make_views(images, views, seeded())
    assert local.shape == other_local.shape == (3, 3, 16, 16)
    assert local.dtype == torch.float32
    torch.testing.assert_close(first, images / 255)
    torch.testing.assert_close(last, tv.solarize(images, 128) / 255)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results do not depend on how many images are worked on at once."""
    images = photos(37)
    views = [MOCO_V3_SECOND, View(16, blur=0.5, count=3)]
    expected = make_views(images, views, seeded())
    monkeypatch.setitem(D.CHUNK, "cpu", 5 * 3 * 32 * 32 * 4)
    for a, b in zip(make_views(images, views, seeded()), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_inputs_are_left_alone() -> None:
    images = photos(4)
    before = images.clone()
    make_views(images, [MOCO_V3_SECOND], seeded())
    view_image(images[0], [MOCO_V3_SECOND], 0)
    eval_images(images, 32)
    assert torch.equal(images, before)


def test_describe() -> None:
    assert describe([View(224), View(224, blur=0.1), View(96, count=10)]) == "2x224 + 10x96"
    assert describe([View(32)]) == "1x32"


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (32, 32), (20, 33), (256, 256)])
def test_evaluation_crop_is_the_official_one(height: int, width: int) -> None:
    image = photos(1, height, width)[0]
    pil = tv.center_crop(tv.resize(tv.to_pil_image(image), [256], T.InterpolationMode.BICUBIC), [224, 224])
    crop = resize_crop(image, 224)
    assert crop.dtype == torch.uint8
    assert crop.shape == (3, 224, 224)
    difference = (crop.int() - tv.pil_to_tensor(pil).int()).abs()  # levels; the two round their filters differently
    assert difference.max() <= 2
    assert difference.float().mean() < 0.1
    expected = (crop / 255 - torch.tensor(V.IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(V.IMAGENET_STD).view(3, 1, 1)
    torch.testing.assert_close(eval_images(image[None], 224)[0], expected)


def test_evaluation_images_of_the_right_size_are_only_normalised() -> None:
    images = photos(3)
    assert resize_crop(images, 32) is images
    normalised = eval_images(images, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    torch.testing.assert_close(normalised, (images / 255 - 0.5) / 0.25)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("count", 0),
        ("scale", (0.5, 0.2)),
        ("scale", (0.5, 1.5)),
        ("ratio", (0.0, 1.0)),
        ("ratio", (1.0,)),
        ("flip", 1.5),
        ("jitter", (0.4, 0.4, 0.2, 0.6)),
        ("jitter", (-0.4, 0.4, 0.2, 0.1)),
        ("jitter_p", -0.1),
        ("grayscale", 2),
        ("blur", float("nan")),
        ("blur_sigma", (0.0, 2.0)),
        ("solarize_threshold", 128),
        ("std", (0.0, 1.0, 1.0)),
        ("interpolation", "nearest"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=field) as error:
        View(**{"size": 32, field: value})
    assert str(value) in str(error.value)


def test_lists_from_a_recipe_are_accepted() -> None:
    view = View(32, scale=[0.2, 1.0])  # type: ignore[arg-type]
    assert view == View(32, scale=(0.2, 1.0))
    assert hash(view)


@pytest.mark.parametrize("size", [12, 48, (20, 36)])
def test_lanczos_is_pils(size: int | tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    height, width = (size, size) if isinstance(size, int) else size
    pil = Image.fromarray(image.movedim(0, -1).numpy()).resize((width, height), Image.Resampling.LANCZOS)
    expected = tv.pil_to_tensor(pil).int()
    whole = View(size, scale=(1, 1), ratio=(1.4, 1.4), flip=0.0, mean=(0, 0, 0), std=(1, 1, 1))
    view = replace(whole, interpolation="lanczos")
    single = (view_image(image, [view], 0)[0] * 255).round().int()
    (batched,) = make_views(image[None], [view], torch.Generator().manual_seed(0))
    assert (single - expected).abs().max() <= 1
    assert (batched[0] * 255 - expected).abs().max() <= 2  # no rounding between the passes


def test_same_repeats_the_draw_at_another_size() -> None:
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = View(32, scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.0), jitter_p=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    twin = replace(plain, size=16, interpolation="lanczos", same=True)
    other = replace(plain, size=16)
    for cut in (
        lambda views: make_views(images, views, torch.Generator().manual_seed(1)),
        lambda views: [torch.stack(v) for v in zip(*(view_image(i, views, 7) for i in images), strict=True)],
    ):
        first, same, different = cut([plain, twin, other])
        small = torch.nn.functional.interpolate(first, size=(16, 16), mode="area")
        assert (small - same).abs().mean() < 0.05  # of noise, which the two filters treat differently
        assert (small - different).abs().mean() > 0.1


def test_processes_share_the_draws_of_one() -> None:
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    views = [View(32, jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, blur=0.5), View(16, count=2)]
    whole = make_views(images, views, torch.Generator().manual_seed(1))
    parts = [make_views(images[i * 3 :][:3], views, torch.Generator().manual_seed(1), (i, 2)) for i in range(2)]
    for joint, *halves in zip(whole, *parts, strict=True):
        torch.testing.assert_close(torch.cat(halves), joint)

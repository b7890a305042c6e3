"""Images per second of the views of MAE, MoCo v3 and DINO: ours against torchvision on PIL images.

    python benchmarks/views.py [--size 32|224] [--threads 1] [--repeats 7] [--images DIR]

One image counts with all its views. At 32 px the batched `make_views` runs on a batch held in memory; at 224 px the
input is 500 x 375 (or the files of DIR) and the per-image `view_images` is what a loader's workers run, so that is the
second column there. The candidates run in turn, repeat by repeat, so that other load on the machine hits all alike; the
medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torchvision.transforms as v1
import torchvision.transforms.v2 as v2
import torchvision.transforms.v2.functional as tv
from PIL import Image, ImageFilter
from torch import Tensor

from ssl_bench.data.loader import AT_ONCE
from ssl_bench.views.make import make_views, view_images
from ssl_bench.views.view import View, describe

Candidate = tuple[Callable[[], object], int]  # what to run, images it handles


def methods(size: int) -> dict[str, list[View]]:
    """The views of the three papers; at 32 px the local crops are 16 px, at 224 px they are 96 px."""
    first = View(size, jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grayscale=0.2, blur=1.0)
    second = replace(first, blur=0.1, solarize=0.2)
    local = replace(first, size=16 if size == 32 else 96, scale=(0.05, 0.4), blur=0.5, count=8)
    return {
        "MAE": [View(size, scale=(0.2, 1.0))],
        "MoCo v3": [replace(first, interpolation="bilinear"), replace(second, interpolation="bilinear")],
        "DINO": [replace(first, scale=(0.4, 1.0)), replace(second, scale=(0.4, 1.0)), local],
    }


def pil_blur(sigma: tuple[float, float], image: Image.Image) -> Image.Image:
    """The blur of the official MoCo v3 and DINO code."""
    return image.filter(ImageFilter.GaussianBlur(float(torch.empty(1).uniform_(*sigma))))


def on_pil(view: View) -> Callable[[Image.Image], Tensor]:
    """The official pipeline: torchvision's first API on PIL images, blur by PIL."""
    steps: list[Callable[..., object]] = [
        v1.RandomResizedCrop(view.size, view.scale, view.ratio, tv.InterpolationMode(view.interpolation)),
        v1.RandomHorizontalFlip(view.flip),
    ]
    if view.jitter_p:
        steps += [v1.RandomApply([v1.ColorJitter(*view.jitter)], view.jitter_p), v1.RandomGrayscale(view.grayscale)]
    if view.blur:
        steps.append(v1.RandomApply([v1.Lambda(partial(pil_blur, view.blur_sigma))], view.blur))
    if view.solarize:
        steps.append(v1.RandomSolarize(128, view.solarize))
    return v1.Compose([*steps, v1.ToTensor(), v1.Normalize(view.mean, view.std)])


def on_tensors(view: View) -> Callable[[Tensor], Tensor]:
    """The same with torchvision's second API on an 8-bit tensor."""
    steps: list[Callable[..., object]] = [
        v2.RandomResizedCrop(view.size, view.scale, view.ratio, tv.InterpolationMode(view.interpolation)),
        v2.RandomHorizontalFlip(view.flip),
    ]
    if view.jitter_p:
        steps += [v2.RandomApply([v2.ColorJitter(*view.jitter)], view.jitter_p), v2.RandomGrayscale(view.grayscale)]
    if view.blur:
        kernel = 23 if view.sides[0] > 32 else 3  # SimCLR's rule: a tenth of the side
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel, view.blur_sigma)], view.blur))
    if view.solarize:
        steps.append(v2.RandomSolarize(128, view.solarize))
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(view.mean, view.std)])


def one_by_one(transforms: Sequence[Callable[..., Tensor]], images: Sequence[object]) -> None:
    """Every transform of every image."""
    for image in images:
        for transform in transforms:
            transform(image)


def candidates(views: Sequence[View], images: Sequence[Tensor], pil: Sequence[Image.Image]) -> dict[str, Candidate]:
    """The ways to draw `views`, the reference first and ours second."""
    crops = [view for view in views for _ in range(view.count)]
    generator = torch.Generator().manual_seed(0)
    few = 64 if images[0].shape[-1] == 32 else 16  # one by one is slow: a share of the images is enough
    found: dict[str, Candidate] = {"v1 on PIL": (partial(one_by_one, [on_pil(v) for v in crops], pil[:few]), few)}
    parts = [images[:few][start : start + AT_ONCE] for start in range(0, few, AT_ONCE)]
    single: Candidate = (lambda: [view_images(part, views, [generator] * len(part)) for part in parts], few)
    tensors: Candidate = (partial(one_by_one, [on_tensors(v) for v in crops], images[:few]), few)
    if len({image.shape for image in images}) > 1:
        return found | {"view_images": single, "v2 on tensors": tensors}
    many = 512 if images[0].shape[-1] == 32 else few
    batch = torch.stack([images[i % len(images)] for i in range(many)])
    batched: Candidate = (lambda: make_views(batch, views, generator), many)
    ours = ("make_views", batched), ("view_images", single)
    return found | dict(ours if many > few else reversed(ours)) | {"v2 on tensors": tensors}


def photographs(count: int, height: int, width: int) -> list[Tensor]:
    """uint8 (3, height, width): smooth colour fields with noise, as heavy to process as photographs."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(count, 3, 6, 8, generator=generator), (height, width), mode="bicubic"
    )
    noise = torch.randn(count, 3, height, width, generator=generator) * 0.05
    return list(((smooth + noise).clamp(0, 1) * 255).to(torch.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, choices=[32, 224], default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--images", type=Path, help="folder of JPEG files, searched recursively")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.images:
        files = sorted(path for path in args.images.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
        files = files[:: max(1, len(files) // 64)]
        images = [tv.pil_to_tensor(Image.open(path).convert("RGB")) for path in files]
    else:
        images = photographs(64, 32, 32) if args.size == 32 else photographs(16, 375, 500)
    pil = [tv.to_pil_image(image) for image in images]
    print(f"{args.size} px, {args.threads} thread(s), median of {args.repeats}: images/s (ratio to the official way)")
    for name, views in methods(args.size).items():
        ways = candidates(views, images, pil)
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(args.repeats + 1):
            for way, (run, count) in ways.items():
                start = time.perf_counter()
                run()
                if repeat:  # the first warms up
                    rates[way].append(count / (time.perf_counter() - start))
        reference = statistics.median(rates["v1 on PIL"])
        cells = [
            f"{way} {statistics.median(r):,.0f} ({statistics.median(r) / reference:.2f}x)" for way, r in rates.items()
        ]
        print(f"{name:8s} {describe(views):14s} " + "   ".join(cells))


if __name__ == "__main__":
    main()

"""Descriptors of whole images for instance search: of pictures in their own proportions, pooled, whitened, of length 1.

DINO's retrieval and copy detection (Caron et al., ICCV 2021, arXiv:2104.14294, section 4.2; authors'
`eval_image_retrieval.py` and `eval_copy_detection.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.evaluator import check_features, name_of
from ssl_bench.evaluations.solvers.neighbours import normalize
from ssl_bench.training.compute import autocast, best_precision
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.utils.progress import progress
from ssl_bench.views.evaluation import eval_images, resize_crop

KINDS = ("cls", "cls+gem", "mean")
LEAST = 1e-6  # of a token's entries before they are pooled
POWER = 4  # of that mean
FLOOR = 1e-5  # of the largest eigenvalue, below which none counts when features are whitened
IMAGES_PER_BATCH = 32


def descriptors(
    network: nn.Module, images: ImageSet, kind: str, prepare: Callable[[Tensor], Tensor], rows: Sequence[int]
) -> Tensor:
    """Descriptors (len(rows), D) float32 of some images.

    Args:
        network: A ``Backbone``.
        images: Any.
        kind: "cls" (without a class token the mean of the tokens), "mean" of the tokens, or "cls+gem": the class token
            beside the generalised mean of the tokens.
        prepare: uint8 (3, H, W) to uint8 (3, H', W'), what the network sees.
        rows: Which images.

    Raises:
        UserError: The network has no tokens, or such a kind isn't there.
        RunError: They mean nothing, or an image can't be read any more.
    """
    if kind not in KINDS:
        raise unknown("descriptor", kind, KINDS)
    if not getattr(network, "has_map", False):
        raise UserError(f"{name_of(network)} gives one vector an image, and no tokens")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone: Any = network.to(device).eval()
    found: dict[int, Tensor] = {}
    waiting: dict[tuple[int, int], list[tuple[int, Tensor]]] = {}  # pictures of one size, and their places

    @torch.no_grad()
    def flush(size: tuple[int, int]) -> None:
        places, pictures = zip(*waiting.pop(size), strict=True)
        pixels = eval_images(torch.stack(pictures).to(device), size, backbone.mean, backbone.std)
        with autocast(device, best_precision() if backbone.can_train else "32"):
            tokens = backbone(pixels)
        pooled = _pooled(tokens.cls.float(), tokens.patches.float(), kind).cpu()
        found.update(zip(places, pooled, strict=True))

    for place, i in enumerate(progress(rows, f"descriptors of {images.name} {images.split}", len(rows))):
        picture = prepare(images.images[i])
        size = (picture.shape[1], picture.shape[2])
        waiting.setdefault(size, []).append((place, picture))
        if len(waiting[size]) == IMAGES_PER_BATCH:
            flush(size)
    for size in list(waiting):
        flush(size)
    features = torch.stack([found[place] for place in range(len(rows))])
    check_features(features, kind, images.split, len(rows))
    return features


def _pooled(cls: Tensor, patches: Tensor, kind: str) -> Tensor:
    if kind == "cls":
        return cls
    return patches.mean(1) if kind == "mean" else torch.cat([cls, generalised_mean(patches)], 1)


def generalised_mean(tokens: Tensor) -> Tensor:
    """(B, L, D) to (B, D): the fourth root of the mean of fourth powers, of entries of 1e-6 at least.

    Example:
        >>> tokens = torch.tensor([[[1.0, 2.0], [-2.0, 2.0], [3.0, -1.0], [0.5, 0.0]]])
        >>> [round(value, 6) for value in generalised_mean(tokens)[0].tolist()]
        [2.128243, 1.681793]
    """
    return tokens.clamp(min=LEAST).pow(POWER).mean(1).pow(1 / POWER)


def thumbnail(side: int, cell: int) -> Callable[[Tensor], Tensor]:
    """What makes pictures smaller, in their proportions, until the long side has ``side`` pixels (Pillow, Lanczos).

    Rows and columns that fill no token of ``cell`` pixels are left out, as a strided convolution does.
    """

    def prepare(image: Tensor) -> Tensor:
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        small = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        height, width = (max(cell, length // cell * cell) for length in small.shape[1:])
        if small.shape[1] < cell or small.shape[2] < cell:
            return resize_crop(small, (height, width))
        return small[:, :height, :width]

    return prepare


def whitened(training: Tensor, features: Tensor) -> Tensor:
    """Features (N, D) whitened by the second moment of training features (M, D), and of length 1.

    The moment isn't centred, while the training features' mean is taken off (the authors' `PCA`).

    Example:
        >>> training = torch.tensor([[1.0, 2.0], [2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
        >>> one, two = whitened(training, torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
        >>> round(float(one @ two), 6)
        0.251976
    """
    own = training.double()
    values, vectors = torch.linalg.eigh(own.T @ own / len(own))
    values = values.clamp(min=FLOOR * float(values.max()))
    centred = features.double() - own.mean(0)
    return normalize(((centred @ vectors) * values.rsqrt()).float())

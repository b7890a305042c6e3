"""DINO's crops: two large ones, and small ones that only the student sees."""

from __future__ import annotations

from dataclasses import replace

from ssl_bench.backbones import check_needs
from ssl_bench.backbones.backbone import Backbone
from ssl_bench.utils.errors import UserError
from ssl_bench.views.view import View, random_resized_crop


def multicrop(
    backbone: Backbone,
    n_local: int,
    local_size: int | None,
    global_scale: tuple[float, float],
    local_scale: tuple[float, float],
    blur_sigma: tuple[float, float],
) -> list[View]:
    """Two global crops, augmented as in BYOL, and ``n_local`` small ones (section 3.1; ``main_dino.py``).

    Raises:
        UserError: ``local_size`` isn't a multiple of the patch size, or the backbone takes one image size alone.

    Example:
        >>> from ssl_bench.backbones import build_backbone
        >>> from ssl_bench.views.view import describe
        >>> describe(multicrop(build_backbone("vit_micro_patch16_224"), 10, None, (0.4, 1), (0.05, 0.4), (0.1, 2)))
        '2x224 + 10x96'
    """
    check_needs("multi-crop", type(backbone), backbone.spec, ["multi_crop"] if n_local else [])
    (height, width), patch = backbone.image_size, backbone.cell
    if local_size is not None and (local_size < patch or local_size % patch):
        raise UserError(f"local_size is {local_size}; it must be a multiple of the patch size {patch}")
    share = (local_size or height * 96 / 224) / height
    first = random_resized_crop(
        (height, width),
        scale=global_scale,
        jitter=(0.4, 0.4, 0.2, 0.1),
        jitter_p=0.8,
        grayscale=0.2,
        blur=1.0,
        blur_sigma=blur_sigma,
    )
    rows, columns = (max(1, round(side * share / patch)) for side in (height, width))
    size = (rows * patch, columns * patch)
    local = [replace(first, size=size, scale=local_scale, blur=0.5, count=n_local)] if n_local else []
    return [first, replace(first, blur=0.1, solarize=0.2), *local]

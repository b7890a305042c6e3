"""Multi-crop: two large crops, and small ones (SwAV; DINO)."""

from __future__ import annotations

from dataclasses import replace

from ssl_bench.backbones import check_needs
from ssl_bench.backbones.backbone import Backbone
from ssl_bench.utils.errors import UserError
from ssl_bench.views.view import View, byol_pair, random_resized_crop


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
    pair = byol_pair(random_resized_crop(backbone.image_size, scale=global_scale, blur_sigma=blur_sigma))
    return [*pair, *local_crops(backbone, replace(pair[0], blur=0.5), n_local, local_size, local_scale)]


def local_crops(
    backbone: Backbone, crop: View, n_local: int, local_size: int | None, scale: tuple[float, float]
) -> list[View]:
    """``n_local`` small crops, none for 0.

    Args:
        backbone: For its image and patch size.
        crop: What they are augmented like.
        n_local: How many.
        local_size: Height, pixels; their shape is the image's. Left out: 96/224 of it, in whole patches.
        scale: Range of their area.

    Raises:
        UserError: ``local_size`` isn't a multiple of the patch size, or the backbone takes one image size alone.
    """
    check_needs("multi-crop", type(backbone), backbone.spec, ["multi_crop"] if n_local else [])
    (height, width), patch = backbone.image_size, backbone.cell
    if local_size is not None and (local_size < patch or local_size % patch):
        raise UserError(f"local_size is {local_size}; it must be a multiple of the patch size {patch}")
    share = (local_size or height * 96 / 224) / height
    rows, columns = (max(1, round(side * share / patch)) for side in (height, width))
    return [replace(crop, size=(rows * patch, columns * patch), scale=scale, count=n_local)] if n_local else []

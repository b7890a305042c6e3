"""Whether a network sees images smaller than they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ssl_bench.data.datasets import ImageSet


def shrunk(images: ImageSet, backbones: Iterable[str] | Mapping[str, int]) -> str:
    """A sentence where images are larger than a backbone sees them; empty where they aren't.

    Args:
        images: Of which the first, the middle and the last are looked at.
        backbones: Names, the image size last; or names and image sizes, pixels.

    Example:
        >>> import torch
        >>> photos = ImageSet("photos", "train", torch.zeros(1), ("a",), "00" * 32, torch.zeros(1, 3, 480, 640))
        >>> shrunk(photos, ["vit_micro_patch8_32", "vit_small_patch16_512"])
        'photos has images of 640 x 480 pixels, which vit_micro_patch8_32 sees at 32 x 32'
    """
    sides = [tuple(images.images[at].shape[1:]) for at in sorted({0, len(images) // 2, len(images) - 1})]
    height, width = max(sides, key=min)
    named = {name: int(size[1]) for name in backbones if (size := re.search(r"_(\d+)$", name))}
    seen = dict(backbones) if isinstance(backbones, Mapping) else named
    small = [name for name, size in seen.items() if size < min(height, width)]
    if not small:
        return ""
    sizes = " or ".join(f"{size} x {size}" for size in sorted({seen[name] for name in small}))
    return (
        f"{images.name} has images of {width} x {height} pixels, which {', '.join(sorted(set(small)))} sees at {sizes}"
    )

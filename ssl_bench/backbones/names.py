"""Names of backbones in timm's grammar (size, patch, image size last), and of their parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ssl_bench.utils.errors import UserError, unknown

LARGEST, MOST = 4096, 2**14  # pixels of a side; patches


def parse_patch_name(name: str, patterns: Iterable[str]) -> tuple[str, int, tuple[int, int]]:
    """Size, patch size and image height and width of a name such as ``vit_small_patch16_224``.

    Args:
        name: Of a backbone.
        patterns: The names of its family, as ``vit_small_patch{P}_{IMAGE}``.

    Raises:
        UserError: Another size, or a patch size that doesn't divide the image.

    Example:
        >>> parse_patch_name("vit_micro_patch8_32x64", ["vit_micro_patch{P}_{IMAGE}"])
        ('vit_micro', 8, (32, 64))
    """
    match = re.fullmatch(r"(\w+?)_patch(\d{1,5})_(\d{1,5})(?:x(\d{1,5}))?", name)
    if not match or f"{match[1]}_patch{{P}}_{{IMAGE}}" not in patterns:
        raise unknown("backbone", name, patterns)
    patch, height = int(match[2]), int(match[3])
    width = int(match[4] or height)
    if patch == 0 or height % patch or width % patch or not height or not width:
        raise UserError(
            f"backbone {name!r}: patch size {patch} does not divide the image size {height} x {width}; "
            f"patch sizes that do: {', '.join(str(p) for p in (2, 4, 8, 14, 16, 32) if not (height % p or width % p))}"
        )
    check_size(name, (height, width), patch)
    return match[1], patch, (height, width)


def check_size(name: str, size: tuple[int, int], cell: int) -> None:
    """Refuse images that no machine trains on, before tables of their size are made.

    Args:
        name: Of a backbone.
        size: Height and width, pixels.
        cell: Side of a patch, pixels.

    Raises:
        UserError: More than ``LARGEST`` pixels a side, or than ``MOST`` patches.
    """
    cells = (size[0] // cell) * (size[1] // cell)
    if max(size) > LARGEST or cells > MOST:
        raise UserError(
            f"backbone {name!r}: {size[0]} x {size[1]} pixels are {cells:,} patches; "
            f"at most {LARGEST:,} pixels a side and {MOST:,} patches are taken"
        )


def layers_by_block(names: Iterable[str], embeddings: Sequence[str], last: int) -> dict[str, int]:
    """``Backbone.layer_ids`` of a family whose blocks are ``blocks.0``, ``blocks.1``, ...

    Args:
        names: Of all parameters.
        embeddings: First parts of the names of what comes before the blocks.
        last: The layer of everything else.

    Example:
        >>> layers_by_block(["pos_embed", "blocks.1.norm1.weight", "norm.weight"], ["pos_embed"], 3)
        {'pos_embed': 0, 'blocks.1.norm1.weight': 2, 'norm.weight': 3}
    """

    def layer_of(name: str) -> int:
        if match := re.match(r"blocks\.(\d+)\.", name):
            return int(match[1]) + 1
        return 0 if name.split(".")[0] in embeddings else last

    return {name: layer_of(name) for name in names}

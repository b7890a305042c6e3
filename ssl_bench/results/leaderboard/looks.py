"""One colour and one marker for each method, in every figure and page of every suite, for ever.

Colours are those of Okabe and Ito (Color Universal Design, 2008), which colour-blind readers tell apart, with grey
instead of yellow, which paper swallows; markers say the same in grey.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from ssl_bench.results.leaderboard.aggregate import Aggregate

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
# A new method goes to the end; the others keep their places.
METHODS = (
    *("mae", "moco_v3", "dino", "ibot", "beit", "simclr", "supervised", "untrained", "byol", "swav", "mpp", "moby"),
    *("esvit", "beit_v2", "igpt", "hiera_mae", "ssta", "maskfeat", "simmim", "eva", "eva02", "raw_pixels"),
)
OWN = 40  # places of methods of this package; as many are left for others


def place_of(method: str) -> int:
    """0 to 39 for a method of this package, 40 to 79 for any other, by its name alone.

    Example:
        >>> place_of("mae"), place_of("VICReg") >= OWN
        (0, True)
    """
    return METHODS.index(method) if method in METHODS else OWN + zlib.crc32(method.encode()) % OWN


def colour_and_marker(place: int) -> tuple[str, str]:
    """Of a place; no two of the 80 are alike.

    Example:
        >>> len({colour_and_marker(place) for place in range(2 * OWN)})
        80
    """
    return COLOURS[place % len(COLOURS)], MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]


def variants(aggregates: Sequence[Aggregate]) -> list[int]:
    """For each aggregate how many of the same method stand before it: recipes and backbones of one method differ."""
    names = [aggregate.method for aggregate in aggregates]
    return [names[:at].count(name) for at, name in enumerate(names)]

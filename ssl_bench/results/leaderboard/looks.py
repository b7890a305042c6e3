"""One colour and one marker for each method, in every figure and page of every suite, for ever.

Colours are those of Okabe and Ito (Color Universal Design, 2008), which colour-blind readers tell apart, with grey
instead of yellow, which paper swallows; markers say the same in grey.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache

from ssl_bench.results.leaderboard.aggregate import Aggregate
from ssl_bench.utils.versions import registered

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
OWN = 40  # places of methods of this package; as many are left for others


def place_of(method: str) -> int:
    """0 to 39 for a method of this package, its place in METHODS; 40 to 79 for any other, by its name alone.

    Example:
        >>> place_of("raw_pixels"), place_of("VICReg") >= OWN
        (0, True)
    """
    own = _own()
    return own.index(method) if method in own else OWN + zlib.crc32(method.encode()) % OWN


@cache
def _own() -> list[str]:
    return registered("method")


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

"""`places`: drawn places, each seen again and again, so that a view of one can search for its others; from a seed.

As in revisited Oxford and Paris (Radenović et al., CVPR 2018) the views of a place are easy, hard or junk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_bench.data.shapes import CLASSES, backdrop, check_draw, chunks, draw_scenes, finish, one_thread, paint
from ssl_bench.data.targets import Search, Searches

OBJECTS = 3  # of a place
# The views of a place, in this order. Easy: from a little nearer or farther. Hard: from farther away, turned, before
# another background, with a passer-by in front. Junk: most of the place is outside.
VIEWS = ("query", *["easy"] * 4, *["hard"] * 4, "junk")

_SHRINK = 0.55  # of objects and textures against those of `shapes`
_BACKDROP = (  # what `shapes.backdrop` draws from
    *("background", "background_hue", "background_luminance", "background_contrast", "background_angle"),
    *("clutter", "clutter_items", "cloud"),
)


@dataclass(frozen=True, eq=False)
class DrawnPlaces:
    """The views of several places.

    Attributes:
        database: `(9 n, 3, size, size)` uint8, RGB: the views of one place after the other, the query left out.
        queries: `(n, 3, size, size)` uint8, one of each place.
        searches: What each query should find in the database.
    """

    database: Tensor
    queries: Tensor
    searches: Searches


def draw_places(n: int, *, size: int, seed: int = 0) -> DrawnPlaces:
    """Draw `n` places of three objects from ten views each, in blocks of ten places as `shapes.draw` does.

    Raises:
        UserError: `n`, `size` or `seed` is out of range.

    Example:
        >>> drawn = draw_places(10, size=32)
        >>> drawn.database.shape, drawn.queries.shape, drawn.searches[1].easy.tolist()
        (torch.Size([90, 3, 32, 32]), torch.Size([10, 3, 32, 32]), [9, 10, 11, 12])
    """
    check_draw("places", n, size, seed)
    parts = []
    with one_thread():
        for blocks in chunks(math.ceil(n / len(CLASSES)), len(CLASSES), size):
            objects = [draw_scenes((seed, 6, k), blocks, size) for k in range(OBJECTS)]
            views = []
            for number, kind in enumerate(VIEWS):
                scene = draw_scenes((seed, 6, OBJECTS + number), blocks, size)  # light, noise and the passer-by
                draws = [np.random.Generator(np.random.PCG64([seed, 7, number, block])) for block in blocks]
                camera = np.concatenate([rng.random((len(CLASSES), 4), dtype=np.float32) for rng in draws])
                views.append(_view(objects, scene, torch.from_numpy(camera), kind, size))
            parts.append(torch.stack(views, 1))
    images = torch.cat(parts)[:n]
    first = np.arange(n) * (len(VIEWS) - 1)
    where = {kind: [at - 1 for at, each in enumerate(VIEWS) if each == kind] for kind in ("easy", "hard", "junk")}
    found = Searches(Search(*(int(at) + np.array(places) for places in where.values())) for at in first)
    return DrawnPlaces(images[:, 1:].flatten(0, 1), images[:, 0], found)


def _view(objects: list[dict[str, Tensor]], own: dict[str, Tensor], camera: Tensor, kind: str, size: int) -> Tensor:
    """`(N, 3, size, size)` uint8: N places as a camera sees them; camera `(N, 4)` in [0, 1)."""
    direction, far, zoom, turn = camera.unbind(1)
    reach, low, high, degrees = {
        "query": (0.0, 0.95, 1.05, 0.0),
        "easy": (0.06, 0.85, 1.2, 8.0),
        "hard": (0.15, 0.5, 0.75, 40.0),
        "junk": (0.6, 0.9, 1.2, 15.0),
    }[kind]
    scale = low * (high / low) ** zoom
    distance, angle = reach * (far if kind != "junk" else 0.8 + 0.2 * far), 2 * math.pi * direction
    turned = degrees * (2 * turn - 1)
    cos, sin = torch.deg2rad(turned).cos(), torch.deg2rad(turned).sin()
    elsewhere = own if kind in ("hard", "junk") else objects[0]
    first = {**own, **{name: elsewhere[name] for name in _BACKDROP}}
    image = backdrop(first, size)
    for each in objects:
        x, y = 1.2 * (each["x"] - 0.5), 1.2 * (each["y"] - 0.5)
        seen = {
            **each,
            "x": 0.5 + angle.cos() * distance + scale * (cos * x - sin * y),
            "y": 0.5 + angle.sin() * distance + scale * (sin * x + cos * y),
            "scale": _SHRINK * scale * each["scale"],
            "period": _SHRINK * scale * each["period"],
            "orientation": each["orientation"] + turned,
            "texture_orientation": each["texture_orientation"] + turned,
        }
        image, _ = paint(image, seen)
    if kind == "hard":
        small = {name: 0.35 * own[name] for name in ("scale", "period")}
        image, _ = paint(image, {**own, **small})
    return finish(image, first)

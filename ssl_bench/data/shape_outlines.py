"""The outlines and textures of `shapes`: what a class looks like, apart from everything that is left to chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def column(values: Tensor) -> Tensor:
    """`(N,)` -> `(N, 1, 1)`, to combine with pixel grids."""
    return values.view(-1, 1, 1)


def turn(x: Tensor, y: Tensor, degrees: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in axes turned by `degrees` `(N,)`."""
    angle = column(torch.deg2rad(degrees))
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


# Outlines: local coordinates (N, H, W) -> roughly the signed distance to the outline, negative inside. `variant` and
# `rounding`, in [0, 1), vary them within the class.


def _disk(x: Tensor, y: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    return torch.hypot(x, y) - 1


def _square(x: Tensor, y: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    radius = column(0.1 + 0.3 * scene["rounding"])
    ax, ay = x.abs() - (1 - radius), y.abs() - (1 - radius)
    return torch.hypot(ax.clamp(min=0), ay.clamp(min=0)) + torch.maximum(ax, ay).clamp(max=0) - radius


def _triangle(x: Tensor, y: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    sharpness = column(8 + 16 * scene["rounding"])
    sides = [x * math.cos(a) + y * math.sin(a) for a in (math.pi / 2, math.pi * 7 / 6, math.pi * 11 / 6)]
    return torch.logsumexp(sharpness.unsqueeze(0) * torch.stack(sides), 0) / sharpness - 0.5


def _star(x: Tensor, y: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    tips = column(5.0 + (scene["variant"] < 0.4))
    fold = 2 * (torch.remainder(torch.atan2(y, x) * tips / (2 * math.pi), 1) - 0.5).abs()  # 1 at a tip, 0 between two
    valley = column(2.0 + 0.5 * scene["rounding"])
    return 0.6 * (torch.hypot(x, y) - 1 / (valley + (1 - valley) * fold))


def _ring(x: Tensor, y: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    return (torch.hypot(x, y) - 0.75).abs() - column(0.22 + 0.06 * scene["variant"])


def _cross(x: Tensor, y: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    ax, ay = x.abs(), y.abs()
    return torch.maximum(torch.maximum(ax, ay) - 1, torch.minimum(ax, ay) - column(0.34 + 0.1 * scene["variant"]))


def _crescent(x: Tensor, y: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    x = x - 0.3
    bite = torch.hypot(x - column(0.6 + 0.1 * scene["variant"]), y)
    return torch.maximum(torch.hypot(x, y) - 1, 0.75 - bite)


def _heart(x: Tensor, y: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    # A square and two discs, turned so that the tip lies on an axis: stretching keeps the symmetry.
    x, y = math.sqrt(0.5) * (x - y) + 0.15, math.sqrt(0.5) * (x + y) + 0.15
    box = torch.maximum(x.abs(), y.abs()) - 0.5
    lobes = torch.minimum(torch.hypot(x - 0.5, y), torch.hypot(x, y - 0.5)) - 0.5
    return torch.minimum(box, lobes)


def _capsule(x: Tensor, y: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    half = column(0.9 + 0.4 * scene["variant"])
    return torch.hypot(x - x.clamp(-half, half), y) - 1


def _clover(x: Tensor, y: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    petals = column(3.0 + (scene["variant"] < 0.5))
    return 0.6 * (torch.hypot(x, y) - 0.7 - 0.3 * torch.cos(petals * torch.atan2(y, x)))


# Textures: coordinates in periods, turned by the texture's own orientation and centred on the object -> a pattern whose
# sign tells which of the two colours shows.


def _checker(u: Tensor, v: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    u, v = _shift(u, v, scene)
    return 1.5 * torch.cos(1.4 * math.pi * u) * torch.cos(1.4 * math.pi * v)


def _dots(u: Tensor, v: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    u, v = _shift(u, v, scene)
    return 0.7 * (torch.cos(2 * math.pi * u) + torch.cos(2 * math.pi * v)) - 0.4


def _speckle(u: Tensor, v: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    total = torch.zeros_like(u)
    for wave in scene["waves"].unbind(1):
        phase, angle, frequency = wave.unbind(1)
        tu, _ = turn(u, v, 360 * angle)
        total += torch.cos(2 * math.pi * (tu * column(0.6 + 0.6 * frequency) + column(phase)))
    return 0.5 * total


def _shaded(u: Tensor, v: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    return 0.12 * u


def _spokes(u: Tensor, v: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    count = column((6 + 3 * scene["phase_v"]).floor())
    return torch.cos(count * torch.atan2(v, u))


def _mosaic(u: Tensor, v: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    tiles = scene["tiles"]
    n, side, _ = tiles.shape
    column, row = ((axis / 0.45 + side / 2).long().clamp(0, side - 1) for axis in (u, v))
    return 2 * tiles[torch.arange(n).view(n, 1, 1), row, column] - 1


def _stripes(u: Tensor, v: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    u, _ = _shift(u, v, scene)
    return torch.cos(2 * math.pi * u)


def _concentric(u: Tensor, v: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    return torch.cos(2 * math.pi * (torch.hypot(u, v) + column(scene["phase_u"])))


def _zigzag(u: Tensor, v: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    u, v = _shift(u, v, scene)
    return torch.cos(2 * math.pi * (u + 1.2 * (torch.remainder(0.5 * v, 1) - 0.5).abs()))


def _waves(u: Tensor, v: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    u, v = _shift(u, v, scene)
    bend = 0.45 * torch.sin(2 * math.pi * 0.35 * v) + 0.3 * torch.sin(2 * math.pi * (0.3 * u + 0.2 * v))
    return torch.cos(2 * math.pi * (0.8 * u + bend))


def _shift(u: Tensor, v: Tensor, scene: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Texture coordinates moved by the image's random phase."""
    return u + column(scene["phase_u"]), v + column(scene["phase_v"])


# Per class, in the order of CLASSES: outline, its mean area in local units, texture.
Field = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
OBJECTS: tuple[tuple[Field, float, Field], ...] = (
    (_disk, 3.12, _checker),
    (_square, 3.90, _dots),
    (_triangle, 1.25, _speckle),
    (_star, 1.39, _shaded),
    (_ring, 2.33, _spokes),
    (_cross, 2.46, _mosaic),
    (_crescent, 1.87, _stripes),
    (_heart, 1.78, _concentric),
    (_capsule, 7.48, _zigzag),
    (_clover, 1.67, _waves),
)

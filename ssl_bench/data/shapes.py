"""`shapes`: a labelled image set drawn from a seed, so that a first benchmark needs no download.

Each of the ten classes pairs one outline with one texture:

| class | outline | texture |     | class | outline | texture |
|---|---|---|---|---|---|---|
| disk | round | checker |          | cross | two bars | random mosaic |
| square | rounded box | dots |     | crescent | moon | stripes |
| triangle | three corners | speckle | | heart | two lobes, one tip | concentric |
| star | 5 or 6 tips | shaded |     | capsule | long, round ends | zigzag |
| ring | disk with a hole | spokes | | clover | 3 or 4 petals | waves |

As in natural images a class shows both in the whole outline and in a small piece of the surface, so that methods that
compare crops and methods that reconstruct patches both find something to learn. Everything else is nuisance and says
nothing about the class: the two object colours, position, scale, orientation, stretch, texture period, phase and
orientation, background, clutter, light and noise. All outlines have the same mean area. `benchmarks/shapes.py` prints
how hard the set is.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.data.shape_outlines import OBJECTS, column, turn
from ssl_bench.utils.errors import UserError

CLASSES = ("disk", "square", "triangle", "star", "ring", "cross", "crescent", "heart", "capsule", "clover")
BACKGROUNDS = ("gradient", "clouds", "grain", "bands")
MAX_CLUTTER = 4
TILT = 15  # degrees an object leans at most to either side
MIN_SIZE = 32

_SUPERSAMPLE = 2  # outline and texture are sampled 2x2 times per pixel
_CHUNK = 2_000_000  # samples rendered at once: bounds the memory on top of the result to about 150 MB at 32 px
# One uniform number in [0, 1) per image and name, in the order drawn; those in _FACTORS are kept as labels.
_SCENE = (
    *("x", "y", "scale", "orientation", "stretch", "variant", "rounding", "hue", "hue_step", "luminance", "contrast"),
    *("saturation", "swap", "period", "phase_u", "phase_v", "texture_orientation", "duty", "background"),
    *("background_hue", "background_luminance", "background_contrast", "background_angle", "clutter", "light"),
    *("light_angle", "noise"),
)
_FACTORS = (
    *("shape", "x", "y", "scale", "orientation", "stretch", "hue", "period", "texture_orientation", "contrast"),
    *("background", "background_hue", "clutter", "light"),
)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Images with the factors they were drawn from.

    Attributes:
        images: `(n, 3, size, size)` uint8, RGB.
        labels: `(n,)` int64, index into `CLASSES`.
        masks: `(n, size, size)` uint8, 1 + the class where more than half of a pixel is covered by the object, else 0.
        factors: Name -> `(n,)` tensor. int64: `shape` (the class), `background` (index into `BACKGROUNDS`), `clutter`
            (count). float32: `x`, `y` (object centre, fractions of the side), `scale` (root of the object's area, in
            sides), `orientation`, `texture_orientation` (degrees from upright), `hue`, `background_hue` (degrees),
            `period` (of the texture, fraction of the side), `stretch` (aspect ratio), `contrast` (luminance step of the
            texture), `light` (relative strength of the light gradient).
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    factors: Mapping[str, Tensor]


def draw(n: int, *, size: int = 32, seed: int = 0) -> Drawn:
    """Draw `n` labelled images.

    Images come in blocks of ten, one of each class in random order; a block depends only on `(seed, its index, size)`.
    So the first images of a longer draw are those of a shorter one, and a larger `size` shows the same scenes in more
    detail. Two seeds give independent draws: use one for training and another for testing.

    Args:
        n: Number of images; class counts differ by one at most.
        size: Side in pixels, 32 or more.
        seed: Non-negative integer.

    Raises:
        UserError: `n`, `size` or `seed` is out of range.

    Example:
        >>> drawn = draw(20, size=32, seed=0)
        >>> drawn.images.shape, drawn.images.dtype
        (torch.Size([20, 3, 32, 32]), torch.uint8)
        >>> torch.bincount(drawn.labels).tolist()
        [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    """
    check_draw("shapes", n, size, seed)
    images, labels, masks, factors = [], [], [], []
    n_blocks = math.ceil(n / len(CLASSES))
    with one_thread():
        for blocks in chunks(n_blocks, len(CLASSES), size):
            scene = draw_scenes((seed,), blocks, size)
            image = backdrop(scene, size)
            image, cover = paint(image, scene)
            images.append(finish(image, scene))
            labels.append(scene["shape"])
            masks.append((cover.squeeze(1) > 0.5) * (1 + scene["shape"].view(-1, 1, 1)).to(torch.uint8))
            factors.append({name: scene[name] for name in _FACTORS})
    return Drawn(
        images=torch.cat(images)[:n],
        labels=torch.cat(labels)[:n],
        masks=torch.cat(masks)[:n],
        factors={name: torch.cat([part[name] for part in factors])[:n] for name in _FACTORS},
    )


def check_draw(what: str, n: int, size: int, seed: int) -> None:
    """Refuse a draw that can't be made.

    Raises:
        UserError: `n`, `size` or `seed` is out of range.
    """
    if n < 1:
        raise UserError(f"{what}: cannot draw {n} images, ask for 1 or more")
    if size < MIN_SIZE:
        raise UserError(f"{what}: size {size} is too small for the textures, use {MIN_SIZE} pixels or more")
    if seed < 0:
        raise UserError(f"{what}: seed {seed} is negative, use 0 or more")


def chunks(blocks: int, images: int, size: int) -> Iterator[range]:
    """Blocks of so many images each, in ranges whose drawing takes a bounded memory."""
    step = max(1, _CHUNK // (images * (size * _SUPERSAMPLE) ** 2))
    return (range(first, min(first + step, blocks)) for first in range(0, blocks, step))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Thousands of short operations: on a busy machine waiting for a second thread costs more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def draw_scenes(seed: tuple[int, ...], blocks: range, size: int) -> dict[str, Tensor]:
    """Every random number of some blocks, in the units in which it is used: name -> `(N, ...)`, N = 10 per block."""
    drawn: dict[str, list[np.ndarray]] = defaultdict(list)
    k = len(CLASSES)
    for block in blocks:
        # PCG64 gives the same numbers on every platform. The pixel noise comes last: only it depends on `size`.
        rng = np.random.Generator(np.random.PCG64([*seed, block]))
        drawn["shape"].append(rng.permutation(k))
        drawn["scene"].append(rng.random((k, len(_SCENE)), dtype=np.float32))
        drawn["clutter_items"].append(rng.random((k, MAX_CLUTTER, 8), dtype=np.float32))
        drawn["waves"].append(rng.random((k, 8, 3), dtype=np.float32))
        drawn["tiles"].append(rng.random((k, 16, 16), dtype=np.float32))
        drawn["cloud"].append(rng.random((k, 3, 8, 8), dtype=np.float32))
        drawn["pixel_noise"].append(rng.standard_normal((k, 3, size, size), dtype=np.float32))
    raw = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in drawn.items()}
    u = dict(zip(_SCENE, raw.pop("scene").unbind(1), strict=True))
    return {
        **raw,
        **u,
        "x": 0.5 + 0.5 * (u["x"] - 0.5),
        "y": 0.5 + 0.5 * (u["y"] - 0.5),
        "scale": 0.45 + 0.2 * u["scale"],
        "stretch": 1.0 + 0.25 * u["stretch"],
        # Upright, as most things in photographs; the texture turns with its object.
        "orientation": TILT * (2 * u["orientation"] - 1),
        "texture_orientation": TILT * (2 * u["orientation"] - 1) + 15 * (2 * u["texture_orientation"] - 1),
        "period": 0.15 + 0.06 * u["period"],
        "hue": 360 * u["hue"],
        "contrast": 0.5 + 0.25 * u["contrast"],
        "background": (u["background"] * len(BACKGROUNDS)).long(),
        "background_hue": 360 * u["background_hue"],
        "clutter": (u["clutter"] * (MAX_CLUTTER + 1)).long(),
        "light": 0.2 * u["light"],
    }


def backdrop(scene: Mapping[str, Tensor], size: int) -> Tensor:
    """Background and clutter of N images, `(N, 3, size, size)` in [0, 1]."""
    return _add_clutter(_background(scene, size), scene)


def paint(image: Tensor, scene: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Images `(N, 3, size, size)` with the object of each scene over them, and its coverage `(N, 1, size, size)`."""
    size = image.shape[-1]
    # Two colours, the lighter on the pattern or off it; coverage and pattern are averaged over the samples of a pixel.
    low = 0.12 + (0.76 - scene["contrast"]) * scene["luminance"]
    swap = scene["swap"] < 0.5
    saturation = 0.35 * scene["saturation"]
    hue_2 = scene["hue"] + 360 * scene["hue_step"]
    colour_1 = _colour(low + scene["contrast"] * swap, scene["hue"], saturation)
    colour_2 = _colour(low + scene["contrast"] * ~swap, hue_2, saturation)
    cover = torch.empty(len(image), 1, size, size)
    painted = torch.empty(len(image), 1, size, size)
    for label in range(len(CLASSES)):
        rows = (scene["shape"] == label).nonzero().squeeze(1)
        inside, pattern = _object(label, {name: value[rows] for name, value in scene.items()}, size * _SUPERSAMPLE)
        cover[rows] = F.avg_pool2d(inside.unsqueeze(1), _SUPERSAMPLE)
        painted[rows] = F.avg_pool2d((inside * pattern).unsqueeze(1), _SUPERSAMPLE)
    return image * (1 - cover) + colour_1 * (cover - painted) + colour_2 * painted, cover


def finish(image: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    """Light falls off across the picture; the sensor adds noise: `(N, 3, size, size)` uint8."""
    x, y = _grid(image.shape[-1])
    angle = column(2 * math.pi * scene["light_angle"])
    image = image * (1 + column(scene["light"]) * (angle.cos() * (2 * x - 1) + angle.sin() * (2 * y - 1))).unsqueeze(1)
    image = image + (0.03 * scene["noise"]).view(-1, 1, 1, 1) * scene["pixel_noise"]
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def _background(scene: Mapping[str, Tensor], size: int) -> Tensor:
    """`(N, 3, size, size)` in [0, 1]: two colours mixed in a gradient, clouds, fine grain or broad bands."""
    x, y = _grid(size)
    angle = column(2 * math.pi * scene["background_angle"])
    along = angle.cos() * (x - 0.5) + angle.sin() * (y - 0.5)
    cloud = scene["cloud"]
    kinds = (
        0.5 + 0.7 * along,
        F.interpolate(cloud[:, :1, :4, :4], size=(size, size), mode="bicubic", align_corners=True).squeeze(1),
        F.interpolate(cloud[:, 1:2], size=(size, size), mode="bicubic", align_corners=True).squeeze(1),
        0.5 + 0.5 * torch.sin(2 * math.pi * (1.5 * along + column(cloud[:, 2, 0, 0]))),
    )
    mix = torch.stack(kinds, 1)[torch.arange(len(cloud)), scene["background"]].unsqueeze(1)
    step = 0.15 * scene["background_contrast"]
    low = 0.1 + (0.8 - step) * scene["background_luminance"]
    first = _colour(low, scene["background_hue"], 0.25 * cloud[:, 2, 0, 1])
    second = _colour(low + step, scene["background_hue"] + 180 * cloud[:, 2, 0, 2], 0.25 * cloud[:, 2, 0, 3])
    return first + (second - first) * mix


def _add_clutter(image: Tensor, scene: Mapping[str, Tensor]) -> Tensor:
    """Draw `scene["clutter"]` small blobs and strokes over the background."""
    size = image.shape[-1]
    x, y = _grid(size)
    for item in range(MAX_CLUTTER):
        rows = (scene["clutter"] > item).nonzero().squeeze(1)
        cx, cy, angle, length, width, luminance, hue, saturation = scene["clutter_items"][rows, item].unbind(1)
        px, py = x - column(cx), y - column(cy)
        cos, sin = column((2 * math.pi * angle).cos()), column((2 * math.pi * angle).sin())
        along, across = px * cos + py * sin, py * cos - px * sin
        half = column(0.12 * length)
        distance = torch.hypot(along - along.clamp(-half, half), across) - column(0.02 + 0.04 * width)
        cover = (0.5 - distance * size).clamp(0, 1).unsqueeze(1)
        image[rows] += cover * (_colour(0.1 + 0.8 * luminance, 360 * hue, 0.3 * saturation) - image[rows])
    return image


def _object(label: int, scene: Mapping[str, Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Coverage and texture of the object of one class, both `(N, size, size)` in [0, 1]."""
    outline, unit_area, texture = OBJECTS[label]
    x, y = _grid(size)
    px, py = x - column(scene["x"]), y - column(scene["y"])
    # Local coordinates: turned, stretched at constant area, and scaled so that the outline has area scale^2.
    unit = scene["scale"] / math.sqrt(unit_area)
    stretch = column(scene["stretch"].sqrt())
    qx, qy = turn(px, py, scene["orientation"])
    distance = outline(qx / (column(unit) * stretch), qy / column(unit) * stretch, scene)
    inside = (0.5 - distance * column(unit) * size).clamp(0, 1)
    tx, ty = turn(px, py, scene["texture_orientation"])
    wave = texture(tx / column(scene["period"]), ty / column(scene["period"]), scene)
    return inside, (0.5 + 2.0 * (wave + 0.3 * (column(scene["duty"]) - 0.5))).clamp(0, 1)


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """Coordinates x `(1, size)` and y `(size, 1)` of the pixel centres, as fractions of the side."""
    centres = (torch.arange(size) + 0.5) / size
    return centres.view(1, -1), centres.view(-1, 1)


def _colour(luminance: Tensor, hue: Tensor, saturation: Tensor) -> Tensor:
    """`(N,)` luminance in [0, 1], hue in degrees, saturation in [0, 1] -> RGB `(N, 3, 1, 1)`."""
    phase = torch.deg2rad(hue.unsqueeze(1) - torch.tensor([0.0, 120.0, 240.0]))
    return (luminance.unsqueeze(1) + saturation.unsqueeze(1) * phase.cos()).clamp(0, 1).view(-1, 3, 1, 1)

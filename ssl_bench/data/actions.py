"""`actions` and `depths`: a drawn object in one of eight motions, and drawn objects at known distances, from a seed.

Which motion it is no single frame says: what moves to the left may have come from anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_bench.data.shapes import CLASSES, backdrop, check_draw, chunks, draw_scenes, finish, one_thread, paint

MOTIONS = ("left", "right", "up", "down", "clockwise", "anticlockwise", "growing", "shrinking")
FRAMES = 8  # of a clip
OBJECTS = 5  # at a distance, in an image
NEAR, FAR = 1.0, 10.0  # metres: the nearest that an object can be, and the background

_TRAVEL = 0.5  # of the side, from the first frame to the last
_TURN = 240.0  # degrees, likewise
_GROWTH = 2.5  # factor, likewise
_SIZE = 0.9  # of an object at 1 metre, times what `shapes` draws


@dataclass(frozen=True, eq=False)
class DrawnActions:
    """The frames of several clips, one clip after the other.

    Attributes:
        images: `(n * FRAMES, 3, size, size)` uint8, RGB.
        labels: `(n * FRAMES,)` int64, index into `MOTIONS` of the clip's motion.
        instances: `(n * FRAMES, size, size)` uint8, 1 where the object is seen.
        clips: `(n * FRAMES,)` int64, the clip of each frame.
    """

    images: Tensor
    labels: Tensor
    instances: Tensor
    clips: Tensor


@dataclass(frozen=True, eq=False)
class DrawnDepths:
    """Images with the distance of every pixel.

    Attributes:
        images: `(n, 3, size, size)` uint8, RGB.
        depths: `(n, size, size)` float32, metres.
    """

    images: Tensor
    depths: Tensor


def draw_actions(n: int, *, size: int, seed: int = 0) -> DrawnActions:
    """Draw `n` clips, the motions of each eight in random order, in blocks of ten as `shapes.draw` does.

    Raises:
        UserError: `n`, `size` or `seed` is out of range.

    Example:
        >>> drawn = draw_actions(16, size=32)
        >>> drawn.images.shape, torch.bincount(drawn.labels).tolist()
        (torch.Size([128, 3, 32, 32]), [16, 16, 16, 16, 16, 16, 16, 16])
    """
    check_draw("actions", n, size, seed)
    rounds = -(-n // len(MOTIONS))
    motions = np.concatenate([np.random.default_rng((seed, 4, k)).permutation(len(MOTIONS)) for k in range(rounds)])
    images, instances = [], []
    with one_thread():
        for block in range(math.ceil(n / len(CLASSES))):
            scene = draw_scenes((seed, 3), range(block, block + 1), size)
            own = torch.from_numpy(motions[block * len(CLASSES) : (block + 1) * len(CLASSES)])
            scene = {name: values[: len(own)] for name, values in scene.items()}
            image, frames = backdrop(scene, size), []
            for t in range(FRAMES):
                moved = _moving(scene, own, t)
                painted, cover = paint(image, moved)
                frames.append((finish(painted, moved), (cover.squeeze(1) > 0.5).to(torch.uint8)))
            images.append(torch.stack([frame for frame, _ in frames], 1))
            instances.append(torch.stack([seen for _, seen in frames], 1))
    return DrawnActions(
        torch.cat(images)[:n].flatten(0, 1),
        torch.from_numpy(motions[:n]).repeat_interleave(FRAMES),
        torch.cat(instances)[:n].flatten(0, 1),
        torch.arange(n).repeat_interleave(FRAMES),
    )


def _moving(scene: dict[str, Tensor], motions: Tensor, t: int) -> dict[str, Tensor]:
    """Scenes at frame `t`; the middle of each motion is where `shapes` would draw the object, at 0.6 of its size."""
    part = t / (FRAMES - 1) - 0.5

    def along(forth: str, back: str) -> Tensor:
        return part * ((motions == MOTIONS.index(forth)).float() - (motions == MOTIONS.index(back)).float())

    turned = _TURN * along("clockwise", "anticlockwise")
    return {
        **scene,
        "x": scene["x"] + _TRAVEL * along("right", "left"),
        "y": scene["y"] + _TRAVEL * along("down", "up"),
        "orientation": scene["orientation"] + turned,
        "texture_orientation": scene["texture_orientation"] + turned,
        "scale": 0.6 * scene["scale"] * _GROWTH ** along("growing", "shrinking"),
        "period": 0.6 * scene["period"] * _GROWTH ** along("growing", "shrinking"),
        "pixel_noise": scene["pixel_noise"].roll((5 * t, 3 * t), (2, 3)),
    }


def draw_depths(n: int, *, size: int, seed: int = 0) -> DrawnDepths:
    """Draw `n` images of objects before a background at 10 metres.

    What is twice as far away is half as large, texture and all, and lies behind what is nearer.

    Raises:
        UserError: `n`, `size` or `seed` is out of range.

    Example:
        >>> drawn = draw_depths(10, size=32)
        >>> drawn.depths.shape, bool((drawn.depths >= NEAR).all() & (drawn.depths <= FAR).all())
        (torch.Size([10, 32, 32]), True)
    """
    check_draw("depths", n, size, seed)
    parts = []
    with one_thread():
        for blocks in chunks(math.ceil(n / len(CLASSES)), len(CLASSES), size):
            objects = [draw_scenes((seed, 5, k), blocks, size) for k in range(OBJECTS)]
            draws = [np.random.Generator(np.random.PCG64([seed, 5, OBJECTS, block])) for block in blocks]
            shares = np.concatenate([rng.random((len(CLASSES), OBJECTS), dtype=np.float32) for rng in draws])
            # Log-uniform, so that sizes are spread as evenly; the farthest first.
            far = NEAR * (FAR / NEAR) ** torch.from_numpy(shares).sort(1, descending=True).values
            image = backdrop(objects[0], size)
            depth = torch.full((len(image), size, size), FAR)
            for k, scene in enumerate(objects):
                z = far[:, k]
                near = {name: _SIZE * scene[name] / z for name in ("scale", "period")}
                image, cover = paint(image, {**scene, **near})
                depth = torch.where(cover.squeeze(1) > 0.5, z.view(-1, 1, 1), depth)
            parts.append((finish(image, objects[0]), depth))
    images, depths = (torch.cat(part)[:n] for part in zip(*parts, strict=True))
    return DrawnDepths(images, depths)

"""`scenes` and `clips`: several objects of `shapes` in one image, and in motion, drawn with their masks from a seed.

Objects and textures are half as large in relation to the image as those of `shapes`, so that a network pre-trained on
`shapes` at 32 px sees them at their size in scenes of 64 px. Later objects lie over earlier ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_bench.data.shapes import CLASSES, backdrop, check_draw, chunks, draw_scenes, finish, one_thread, paint

OBJECTS = 4  # in a scene at most
MOVING = 3  # objects of a clip
FRAMES = 16  # of a clip
SIZE = 64  # pixels, unless another is asked for

_SHRINK = 0.6  # of objects and textures against those of `shapes`
_BORDER = 0.12  # fraction of the side that the centre of a moving object keeps from the border


@dataclass(frozen=True, eq=False)
class DrawnScenes:
    """Images with several objects each.

    Attributes:
        images: `(n, 3, size, size)` uint8, RGB.
        masks: `(n, size, size)` uint8, 1 + the class of the object seen at each pixel, 0 for the background.
        instances: `(n, size, size)` uint8, 1 + the number of that object in its image, 0 for the background.
    """

    images: Tensor
    masks: Tensor
    instances: Tensor


@dataclass(frozen=True, eq=False)
class DrawnClips:
    """The frames of several clips, one clip after the other.

    Attributes:
        images: `(n * FRAMES, 3, size, size)` uint8, RGB.
        instances: `(n * FRAMES, size, size)` uint8, 1 + the number of the object seen at each pixel, the same through a
            clip; 0 for the background.
        clips: `(n * FRAMES,)` int64, the clip of each frame.
    """

    images: Tensor
    instances: Tensor
    clips: Tensor


def draw_objects(n: int, *, size: int = SIZE, seed: int = 0) -> DrawnScenes:
    """Draw `n` scenes of one to four objects, in blocks of ten as `shapes.draw` does.

    Raises:
        UserError: `n`, `size` or `seed` is out of range.

    Example:
        >>> scenes = draw_objects(10)
        >>> scenes.images.shape, scenes.masks.shape, int(scenes.instances.max())
        (torch.Size([10, 3, 64, 64]), torch.Size([10, 64, 64]), 3)
    """
    check_draw("scenes", n, size, seed)
    parts = []
    with one_thread():
        for blocks in chunks(math.ceil(n / len(CLASSES)), len(CLASSES), size):
            objects = [_small(draw_scenes((seed, 1, k), blocks, size)) for k in range(OBJECTS)]
            count = 1 + (OBJECTS * _uniform((seed, 1, OBJECTS), blocks, 1).squeeze(1)).long()
            parts.append(_render(objects, count, size))
    images, masks, instances = (torch.cat(part)[:n] for part in zip(*parts, strict=True))
    return DrawnScenes(images, masks, instances)


def draw_clips(n: int, *, size: int = SIZE, seed: int = 0) -> DrawnClips:
    """Draw `n` clips of objects that move straight on, turn, bounce off the border and pass over each other.

    Every frame shows the same background under other noise.

    Raises:
        UserError: `n`, `size` or `seed` is out of range.

    Example:
        >>> clips = draw_clips(10, size=32)
        >>> clips.images.shape, clips.clips[::FRAMES].tolist()
        (torch.Size([160, 3, 32, 32]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    check_draw("clips", n, size, seed)
    images, instances = [], []
    with one_thread():
        for block in range(math.ceil(n / len(CLASSES))):
            blocks = range(block, block + 1)
            objects = [_small(draw_scenes((seed, 2, k), blocks, size)) for k in range(MOVING)]
            motion = _uniform((seed, 2, MOVING), blocks, 3 * MOVING).unflatten(1, (MOVING, 3))
            frames = []
            for t in range(FRAMES):
                moved = [_moved(each, motion[:, k], t) for k, each in enumerate(objects)]
                frames.append(_render(moved, torch.full((len(motion),), MOVING), size))
            images.append(torch.stack([frame[0] for frame in frames], 1))
            instances.append(torch.stack([frame[2] for frame in frames], 1))
    clips = torch.arange(n).repeat_interleave(FRAMES)
    return DrawnClips(torch.cat(images)[:n].flatten(0, 1), torch.cat(instances)[:n].flatten(0, 1), clips)


def _uniform(seed: tuple[int, ...], blocks: range, count: int) -> Tensor:
    """`(10 * blocks, count)` float32 in [0, 1)."""
    draws = [np.random.Generator(np.random.PCG64([*seed, block])) for block in blocks]
    return torch.from_numpy(np.concatenate([rng.random((len(CLASSES), count), dtype=np.float32) for rng in draws]))


def _small(scene: dict[str, Tensor]) -> dict[str, Tensor]:
    """A scene of `shapes` with its object smaller and anywhere in the image."""
    return {
        **scene,
        "x": 0.5 + 1.5 * (scene["x"] - 0.5),
        "y": 0.5 + 1.5 * (scene["y"] - 0.5),
        "scale": _SHRINK * scene["scale"],
        "period": _SHRINK * scene["period"],
    }


def _moved(scene: dict[str, Tensor], motion: Tensor, t: int) -> dict[str, Tensor]:
    """A scene at frame `t`; motion `(N, 3)` in [0, 1): direction, speed and spin."""
    angle, speed = 2 * math.pi * motion[:, 0], 0.015 + 0.03 * motion[:, 1]  # sides a frame
    turned = 12 * (motion[:, 2] - 0.5) * t  # at most 6 degrees a frame
    return {
        **scene,
        "x": _bounced(scene["x"] + angle.cos() * speed * t),
        "y": _bounced(scene["y"] + angle.sin() * speed * t),
        "orientation": scene["orientation"] + turned,
        "texture_orientation": scene["texture_orientation"] + turned,
        "pixel_noise": scene["pixel_noise"].roll((5 * t, 3 * t), (2, 3)),
    }


def _bounced(place: Tensor) -> Tensor:
    """Places on a line, reflected into the part of it that is inside the borders."""
    length = 1 - 2 * _BORDER
    return _BORDER + length - (torch.remainder(place - _BORDER, 2 * length) - length).abs()


def _render(objects: list[dict[str, Tensor]], count: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, class masks and instances of N scenes with the first `count` `(N,)` of the objects; see `DrawnScenes`."""
    first: Mapping[str, Tensor] = objects[0]  # background, clutter, light and noise are those of the first
    image = backdrop(first, size)
    masks = torch.zeros(len(image), size, size, dtype=torch.uint8)
    instances = torch.zeros_like(masks)
    for k, scene in enumerate(objects):
        there = (count > k).view(-1, 1, 1)
        painted, cover = paint(image, scene)
        image = torch.where(there.unsqueeze(1), painted, image)
        seen = there & (cover.squeeze(1) > 0.5)
        masks[seen] = (1 + scene["shape"].view(-1, 1, 1)).to(torch.uint8).expand_as(masks)[seen]
        instances[seen] = k + 1
    return finish(image, first), masks, instances

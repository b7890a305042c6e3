"""The data sets that are drawn: their sizes, and each as a source of images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ssl_bench.data.sources import Raw
from ssl_bench.data.targets import Searches, Targets

# The usual size in pixels, and how many images (clips) train and test have.
DRAWN = {
    "shapes": (32, 10_000, 4_000),
    "scenes": (64, 2_000, 500),
    "clips": (64, 10, 30),
    "actions": (32, 400, 400),
    "depths": (64, 2_000, 500),
    "places": (64, 60, 60),  # places: nine views of each are searched, with one of each
}


def draw_raw(kind: str, count: int, size: int, seed: int) -> tuple[Raw, Targets, Mapping[str, Tensor]]:
    """Images, what is where in them, and the factors they were drawn from."""
    from ssl_bench.data import actions, places, scenes, shapes

    seen = ("background", *shapes.CLASSES)
    if kind == "shapes":
        drawn = shapes.draw(count, size=size, seed=seed)
        raw = Raw(drawn.images, drawn.labels.numpy(), tuple(shapes.CLASSES))
        return raw, Targets(seen, drawn.masks, drawn.masks.sign()), drawn.factors
    if kind == "scenes":
        found = scenes.draw_objects(count, size=size, seed=seed)
        return _unlabelled(found.images), Targets(seen, found.masks, found.instances), {}
    if kind == "actions":
        acts = actions.draw_actions(count, size=size, seed=seed)
        raw = Raw(acts.images, acts.labels.numpy(), actions.MOTIONS)
        return raw, Targets(instances=acts.instances, clips=acts.clips), {}
    if kind == "depths":
        far = actions.draw_depths(count, size=size, seed=seed)
        return _unlabelled(far.images), Targets(depths=far.depths), {}
    if kind == "places":  # the queries, whose seed is odd, are of the places of the seed before
        seen_again = places.draw_places(count, size=size, seed=seed // 2)
        if seed % 2:
            return _unlabelled(seen_again.queries), Targets(searches=seen_again.searches), {}
        database = seen_again.database
        return _unlabelled(database), Targets(searches=Searches.nothing(len(database))), {}
    clips = scenes.draw_clips(count, size=size, seed=seed)
    return _unlabelled(clips.images), Targets(instances=clips.instances, clips=clips.clips), {}


def _unlabelled(images: Tensor) -> Raw:
    return Raw(images, np.zeros(len(images), np.int64), ())

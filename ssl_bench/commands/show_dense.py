"""Panels of a picture for data with masks or clips: what is predicted beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.config.protocol import named_evaluator
from ssl_bench.data.datasets import ImageSet, Splits
from ssl_bench.evaluations.dense import common_size, resized, resized_mask
from ssl_bench.evaluations.frozen.segmentation_knn import SegmentationKNN
from ssl_bench.evaluations.frozen.vos import LATER, VOS
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.evaluations.pictures import SURE, boxed, colours, overlaid

MEMORY_IMAGES = 500  # training images from which the memory is filled, for a picture in seconds
STEPS = 60  # of a detector's training, for a picture in less than a minute


def dense_panels(encoder: nn.Module, splits: Splits, picked: Sequence[int]) -> list[tuple[str, Tensor]]:
    """Columns (B, 3, H, W) float in [0, 1] with a name each; none for data without masks or clips.

    Args:
        encoder: A backbone.
        splits: The data.
        picked: Which test images have a line; of clips, each line shows the clip of its image.
    """
    offers = splits.train.offers & splits.test.offers
    if "clips" in offers:
        return _clips(FrozenEncoder(encoder), splits.test, picked)
    found = _masks(FrozenEncoder(encoder), splits, picked) if "masks" in offers else []
    return found + (_boxes(FrozenEncoder(encoder), splits, picked) if "objects" in offers else [])


def _masks(encoder: FrozenEncoder, splits: Splits, picked: Sequence[int]) -> list[tuple[str, Tensor]]:
    size = common_size(splits.train)
    test = splits.test.subset(torch.tensor(picked), "test")
    spread = torch.linspace(0, len(splits.train) - 1, min(MEMORY_IMAGES, len(splits.train))).long()
    made = SegmentationKNN()
    memory = made.fill(encoder, splits.train.subset(spread, "train"), size)
    scores = torch.cat([maps for _, maps in made.predict(encoder, test, size, memory)])
    predicted = F.interpolate(scores, size, mode="bilinear").argmax(1)
    assert test.targets is not None
    truth = torch.stack([resized_mask(test.targets.mask(i), size) for i in range(len(test))])
    images = torch.stack([resized(test.images[i], size) for i in range(len(test))])
    return [("whole", images.float() / 255), ("truth", colours(truth)), ("segmentation-knn", colours(predicted))]


def _boxes(encoder: FrozenEncoder, splits: Splits, picked: Sequence[int]) -> list[tuple[str, Tensor]]:
    made: Any = named_evaluator("detection")[1]
    made.steps = STEPS
    model, _ = made.fit(encoder, splits.train)
    test, size = splits.test.subset(torch.tensor(picked), "test"), common_size(splits.train)
    assert test.targets is not None
    columns: dict[str, list[Tensor]] = {"boxes": [], f"detection, {STEPS} steps": []}
    for i, found in enumerate(made.predict(model, test)):
        sure, image, truth = found["scores"] > SURE, test.images[i], test.targets.objects(i)
        seen = (truth.boxes, truth.labels), (found["boxes"][sure], found["labels"][sure])
        for column, (boxes, labels) in zip(columns.values(), seen, strict=True):
            column.append(resized(boxed(image, boxes, labels), size).float() / 255)
    return [(name, torch.stack(images)) for name, images in columns.items()]


def _clips(encoder: FrozenEncoder, test: ImageSet, picked: Sequence[int]) -> list[tuple[str, Tensor]]:
    size = common_size(test)
    assert test.targets is not None and test.targets.clips is not None
    lines: dict[str, list[Tensor]] = {}
    for index in picked:
        at = (test.targets.clips == test.targets.clips[index]).nonzero().squeeze(1)
        clip = test.subset(at, "test")
        assert clip.targets is not None
        predicted = list(VOS().propagate(encoder, clip))
        for share in (0.0, *LATER):
            t = int(share * len(clip))
            image = resized(clip.images[t], size)
            for name, mask in (("truth", clip.targets.instance(t)), ("vos", predicted[t])):
                if share or name == "truth":
                    over = overlaid(image, resized_mask(mask, size)).float() / 255
                    lines.setdefault(f"{name}, frame {share:.0%}", []).append(over)
    return [(name, torch.stack(images)) for name, images in lines.items()]

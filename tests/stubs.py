"""Encoders of given features, shared by the tests of evaluators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_bench.data.datasets import ImageSet


class Stub:
    """Pooling "mean" carries the class, "cls" nothing; `asked` records which splits were requested, in order."""

    poolings = ("cls", "mean")

    def __init__(self, features: dict[str, Tensor]) -> None:
        self.of, self.asked = features, list[str]()

    def features(self, images: ImageSet, poolings: object) -> dict[str, Tensor]:
        self.asked.append(images.split)
        whole, rows = (images, slice(None)) if images.origin is None else images.origin
        x = self.of[whole.split]
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(len(x)))
        return {"cls": noise[rows], "mean": x[rows]}


class FixedFeatures:
    """Fixed features for each split; `asked` records which splits were requested, in order."""

    def __init__(self, features: dict[str, dict[str, Tensor]]) -> None:
        self.of, self.asked = features, list[str]()
        self.poolings = tuple(features["train"])

    def features(self, images: ImageSet, poolings: Sequence[str]) -> dict[str, Tensor]:
        self.asked.append(images.split)
        whole, rows = (images, slice(None)) if images.origin is None else images.origin
        return {name: self.of[whole.split][name][rows] for name in poolings}

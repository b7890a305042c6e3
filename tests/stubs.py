"""Encoders of given features, for the tests of evaluators; backbones of given tokens, for those of methods."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssl_bench.data.datasets import ImageSet


class StubBackbone(nn.Module):
    """Of a method's worked numbers; a subclass says which tokens ``forward`` gives."""

    def class_token(self, images: Tensor) -> Tensor:
        cls: Tensor = self(images).cls
        return cls


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

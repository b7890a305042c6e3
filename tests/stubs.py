"""An encoder of given features, shared by the tests of evaluators."""

from __future__ import annotations

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

"""Frozen features: one pass over each split serves every evaluator and every pooling."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ssl_bench.backbone import Pixels
from ssl_bench.compute import autocast, best_precision
from ssl_bench.data import ImageSet
from ssl_bench.errors import UserError
from ssl_bench.progress import progress
from ssl_bench.views import eval_images, resize_crop


class FrozenEncoder:
    """An encoder for evaluators: eval mode, no gradient, features kept for the next one who asks.

    The transform is the one of DINO and MAE: short side to 256/224 of the image size, centre crop, ImageNet statistics;
    images of the right size already are only normalised. Subsets (fit, dev) take their rows from the features of the
    split they come from.

    Args:
        encoder: Backbone or Pixels.
        poolings: Extracted together in the first pass, so that later evaluators find theirs.
        batch_size: Images a forward pass.
        workers: Processes that decode images that are not held decoded.
        folder: See `Encoder`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        poolings: Sequence[str] = (),
        batch_size: int = 256,
        workers: int | None = None,
        folder: Path = Path("runs/evaluations"),
    ) -> None:
        if not hasattr(encoder, "features"):
            raise UserError(f"a {type(encoder).__name__} has no features to judge")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.encoder: Any = encoder.to(self.device).eval()
        # Pixels have no matrix product that would gain from bf16.
        self.precision = "32" if isinstance(encoder, Pixels) else best_precision()
        self.asked, self.batch_size = tuple(poolings), batch_size
        self.workers = torch.get_num_threads() if workers is None else workers
        self.folder = folder
        self.kept: dict[tuple[str, str], Tensor] = {}

    def copy(self) -> nn.Module:
        """A copy of the network on the CPU, in eval mode."""
        return copy.deepcopy(self.encoder).cpu()

    @property
    def poolings(self) -> tuple[str, ...]:
        """What this encoder offers."""
        return self.encoder.poolings

    def features(self, images: ImageSet, poolings: Sequence[str]) -> dict[str, Tensor]:
        """Features of a split.

        Returns:
            pooling -> (N, D) float32 on the CPU, rows as in ``images.labels``.
        """
        if images.origin is not None:
            whole, indices = images.origin
            return {name: rows[indices] for name, rows in self.features(whole, poolings).items()}
        missing = [p for p in poolings if (images.fingerprint, p) not in self.kept]
        if missing:
            wanted = dict.fromkeys([*missing, *(p for p in self.asked if p in self.poolings)])
            self.kept |= {(images.fingerprint, p): f for p, f in self._extract(images, list(wanted)).items()}
        return {p: self.kept[images.fingerprint, p] for p in poolings}

    @torch.inference_mode()
    def _extract(self, images: ImageSet, poolings: list[str]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        at = 0
        title = f"features of {images.name} {images.split}"
        total = -(-len(images) // self.batch_size)
        for batch in progress(self._batches(images), title, total):
            pixels = eval_images(batch.to(self.device, non_blocking=True), self.encoder.image_size)
            with autocast(self.device, self.precision):
                pooled = self.encoder.features(pixels, poolings)
            for pooling, rows in pooled.items():
                store = out.setdefault(pooling, torch.empty(len(images), rows.shape[1]))
                store[at : at + len(rows)] = rows
            at += len(batch)
        return out

    def _batches(self, images: ImageSet) -> Iterator[Tensor]:
        """uint8 (B, 3, H, W) batches in order."""
        if images.decoded is not None:
            yield from images.decoded.split(self.batch_size)
        else:
            crops = _Crops(images, self.encoder.image_size)
            yield from DataLoader(crops, self.batch_size, num_workers=self.workers)


class _Crops(Dataset[Tensor]):
    """Centre crops of images of any size, for worker processes."""

    def __init__(self, images: ImageSet, size: tuple[int, int]) -> None:
        self.images, self.size = images.images, size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return resize_crop(self.images[index], self.size)

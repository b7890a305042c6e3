"""Frozen features: one pass over each split serves every evaluator and every pooling, in this run and in later ones."""

from __future__ import annotations

import copy
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.data import VERSIONS
from ssl_bench.data.datasets import ImageSet
from ssl_bench.data.images import unchanged
from ssl_bench.data.reading import decoders
from ssl_bench.evaluations.dense import feature_map
from ssl_bench.evaluations.feature_cache import FeatureCache, encoder_key
from ssl_bench.training.compute import autocast, best_precision
from ssl_bench.utils.distributed import one_process, process, share
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.utils.identity import source_of
from ssl_bench.utils.progress import progress
from ssl_bench.views.evaluation import eval_images, resize_crop

VERSION = 1  # of "features": raised by every change that can move a frozen feature: the crop, normalisation, precision
IN_MEMORY = 2**28  # bytes; more rows than that are taken from a split into a file


class FrozenEncoder:
    """An encoder for evaluators: eval mode, no gradient, features kept for the next one who asks.

    The transform is the one of DINO and MAE: short side to 256/224 of the image size, centre crop, normalised by the
    encoder's own mean and std; images of the right size already are only normalised. Subsets (fit, dev) take their rows
    from the features of the split they come from.

    With a `cache`, features are float32 files that later runs read (`FeatureCache`) and that need not fit in memory.
    Float16 would halve them, and moves predictions. Under `torchrun` every process extracts its share. Raw pixels that
    are held decoded are as good as extracted, and stay out of it.

    Args:
        encoder: A ``Backbone``, or whatever else has ``features``, ``poolings``, ``image_size``, ``mean`` and ``std``.
        poolings: Extracted together in the first pass, so that later evaluators find theirs.
        batch_size: Images a forward pass.
        workers: Processes that decode images that are not held decoded.
        folder: See `Encoder`.
        cache: Folder for the features of all encoders; None keeps them in memory.
    """

    def __init__(
        self,
        encoder: nn.Module,
        poolings: Sequence[str] = (),
        batch_size: int = 256,
        workers: int | None = None,
        folder: Path = Path("runs/evaluations"),
        cache: Path | None = None,
    ) -> None:
        if not hasattr(encoder, "features"):
            raise UserError(f"a {type(encoder).__name__} has no features to evaluate")
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        self.encoder: Any = encoder.to(self.device).eval()
        # Without weights there is no matrix product that would gain from bf16.
        self.weightless = isinstance(encoder, Backbone) and not encoder.can_train
        self.precision = "32" if self.weightless else best_precision()
        self.asked, self.batch_size = tuple(poolings), batch_size
        self.workers = decoders() if workers is None else workers
        self.folder, self.cache = folder, cache
        self.kept: dict[tuple[str, str], Tensor] = {}

    def copy(self) -> nn.Module:
        """A copy of the network on the CPU, in eval mode."""
        return copy.deepcopy(self.encoder).cpu()

    @property
    def poolings(self) -> tuple[str, ...]:
        """What this encoder offers."""
        return self.encoder.poolings

    @property
    def choose_layer(self) -> bool:
        """Whether evaluators compare all layers where they would take the mean of the last (``Backbone``)."""
        return getattr(self.encoder, "choose_layer", False)

    def features(self, images: ImageSet, poolings: Sequence[str]) -> dict[str, Tensor]:
        """Features of a split.

        Returns:
            pooling -> (N, D) float32 on the CPU, rows as in ``images.labels``.

        Raises:
            RunError: An image can't be read any more, or one of several processes can't write its share.
        """
        if images.origin is not None:
            return {p: self._subset(images, p, rows) for p, rows in self.features(images.origin[0], poolings).items()}
        if any((images.fingerprint, p) not in self.kept for p in poolings):
            wanted = dict.fromkeys([*poolings, *(p for p in self.asked if p in self.poolings)])
            missing = [p for p in wanted if (images.fingerprint, p) not in self.kept]
            cheap = self.weightless and images.decoded is not None
            found = self._extract(images, missing) if self.cache is None or cheap else self._cached(images, missing)
            self.kept |= {(images.fingerprint, p): rows for p, rows in found.items()}
        return {p: self.kept[images.fingerprint, p] for p in poolings}

    def map_of(self, images: Tensor, blocks: Sequence[int] = (), cls: bool = False) -> Tensor:
        """See `Encoder.map_of`."""
        size, mean, std = (images.shape[-2], images.shape[-1]), self.encoder.mean, self.encoder.std
        with torch.no_grad(), autocast(self.device, self.precision):  # heads may learn from them
            pixels = eval_images(images.to(self.device), size, mean, std)
            return feature_map(self.encoder, pixels, blocks, cls).float().cpu()

    def _subset(self, images: ImageSet, pooling: str, rows: Tensor) -> Tensor:
        """The rows of a subset: a copy in memory, or a mapped file when they are many."""
        assert images.origin is not None
        at, key = images.origin[1], (images.fingerprint, pooling)
        if key in self.kept:
            return self.kept[key]
        if self.cache is None or 4 * len(at) * rows.shape[1] <= IN_MEMORY:
            return rows[at]
        try:
            self.kept[key] = _mapped(rows, at, self.cache)
        except OSError:  # a full disk
            return rows[at]
        return self.kept[key]

    def _cached(self, images: ImageSet, poolings: list[str]) -> dict[str, Tensor]:
        """From the cache, where all are in the end."""
        assert self.cache is not None
        key = {**self._key, "images": images.fingerprint, "reader": f"{images.reader} {VERSIONS[images.reader]}"}
        cache = FeatureCache(self.cache, key, len(images))
        try:
            with cache.extracting(poolings) as missing:
                if missing:
                    cache.fill(missing, self.batch_size, partial(self._batches, images, missing))
        except OSError as error:
            why = f"cannot keep features in {cache.folder} ({error.strerror or error})"
            if process()[1] > 1:
                raise RunError(why) from error
            print(f"{why}: they stay in memory", file=sys.stderr)
            return self._extract(images, poolings)
        found = {p: rows for p in poolings if (rows := cache.read(p)) is not None}
        deleted = [p for p in poolings if p not in found]  # by someone, just now
        with one_process():  # the others may have seen the file
            return found | (self._extract(images, deleted) if deleted else {})

    @cached_property
    def _key(self) -> dict[str, Any]:
        """Everything but the images that decides a feature."""
        return {
            **encoder_key(self.encoder),
            "transform": f"256/224, centre {self.encoder.image_size}, mean {self.encoder.mean}, std {self.encoder.std}",
            "precision": f"{self.precision} on {self.device.type}",
            "features": VERSION,
            "backbone": [getattr(type(self.encoder), "version", None), source_of(type(self.encoder))],
            "made": f"torch {torch.__version__}, timm {timm.__version__}",
        }

    def _extract(self, images: ImageSet, poolings: list[str]) -> dict[str, Tensor]:
        """Into memory; several processes extract a share each."""
        out: dict[str, Tensor] = {}
        start, end = share(len(images), self.batch_size)
        at = 0
        for found in self._batches(images, poolings, start, end):
            for pooling, rows in found.items():
                out.setdefault(pooling, torch.empty(end - start, rows.shape[1]))[at : at + len(rows)] = rows
            at += len(rows)
        if process()[1] == 1:
            return out
        shares: list[dict[str, Tensor]] = [{}] * process()[1]
        torch.distributed.all_gather_object(shares, out)
        return {pooling: torch.cat([each[pooling] for each in shares if each]) for pooling in poolings}

    def _batches(self, images: ImageSet, poolings: list[str], start: int, end: int) -> Iterator[dict[str, Tensor]]:
        """Features of the images [start, end), batch by batch."""
        batches = self._images(images, start, end)
        if process()[0] == 0:
            total = -(-(end - start) // self.batch_size)
            batches = progress(batches, f"features of {images.name} {images.split}", total)
        for batch in batches:
            with torch.inference_mode():
                size, mean, std = self.encoder.image_size, self.encoder.mean, self.encoder.std
                pixels = eval_images(batch.to(self.device, non_blocking=True), size, mean, std)
                with autocast(self.device, self.precision):
                    pooled = self.encoder.features(pixels, poolings)
                found = {pooling: rows.float().cpu() for pooling, rows in pooled.items()}
            yield found

    def _images(self, images: ImageSet, start: int, end: int) -> Iterator[Tensor]:
        """uint8 (B, 3, H, W) batches in order."""
        if images.decoded is not None:
            yield from images.decoded[start:end].split(self.batch_size)
        else:
            crops = _Crops(images, self.encoder.image_size)
            sampler = range(start, end)
            batches = DataLoader(crops, self.batch_size, sampler=sampler, num_workers=self.workers, collate_fn=_collate)
            for batch in batches:
                if isinstance(batch, RunError):
                    raise batch
                yield batch


def _mapped(rows: Tensor, at: Tensor, folder: Path) -> Tensor:
    """``rows[at]`` in a file without a name, which goes with the tensor."""
    with tempfile.TemporaryFile(dir=folder) as file:
        for part in at.split(8192):
            file.write(rows[part].numpy().data)
        file.flush()
        return torch.from_numpy(np.memmap(file, np.float32, "c", shape=(len(at), rows.shape[1])))


class _Crops(Dataset[Tensor | RunError]):
    """Images for worker processes to read: centre crops of any, but whole ones where they are of one size.

    Those are cropped as a batch and on the device, as where they are held: to the bit.
    """

    def __init__(self, images: ImageSet, size: tuple[int, int]) -> None:
        self.images, self.sides, self.size = images.images, images.sides, size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor | RunError:
        try:
            if self.sides is not None:
                return unchanged(self.images, index, self.sides)
            return resize_crop(self.images[index], self.size)
        except RunError as error:
            return error  # raised in a worker, it would reach the user as a traceback


def _collate(items: list[Tensor | RunError]) -> Tensor | RunError:
    for item in items:
        if isinstance(item, RunError):
            return item
    batch: Tensor = default_collate(items)
    return batch

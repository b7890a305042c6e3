"""An online k-NN and collapse meters, measured while a method trains."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy

from ssl_bench.data.datasets import ImageSet
from ssl_bench.training.callbacks import Report
from ssl_bench.training.compute import autocast
from ssl_bench.views.evaluation import eval_images, resize_crop


class Monitor(Callback):
    """k-NN on held-out training images and collapse meters, a few times a run, logged beside the loss.

    It stands before the ``Report`` among the callbacks.

    It costs a few hundred forward passes a time; nothing is selected by it.
    """

    def __init__(self, report: Report, bank: ImageSet, queries: ImageSet, times: int = 4, size: int = 512) -> None:
        self.report, self.times = report, times
        generator = torch.Generator().manual_seed(0)
        self.sets = [
            images.subset(torch.randperm(len(images), generator=generator)[:size], "dev") for images in (bank, queries)
        ]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure at equal distances."""
        every = max(1, trainer.max_steps // self.times)
        if not hasattr(pl_module.encoder, "features"):  # a tokenizer
            return
        if trainer.global_step % every == 0:
            self.report.extra = self.measure(pl_module) if trainer.is_global_zero else {}

    @torch.no_grad()
    def measure(self, method: LightningModule) -> dict[str, float]:
        """Accuracy in percent, and the spread of the features."""
        from ssl_bench.metrics.votes import votes  # here: evaluators that train are built on this module

        encoder: Any = method.encoder
        training = encoder.training
        encoder.eval()
        features = []
        for images in self.sets:
            size: Any = method.backbone.image_size  # type: ignore[union-attr]
            pixels = images.decoded
            if pixels is None:  # of several sizes
                pixels = torch.stack([resize_crop(images.images[i], size) for i in range(len(images))])
            batch = eval_images(pixels.to(method.device), size, encoder.mean, encoder.std)
            with autocast(method.device, method.trainer.precision):
                features.append(encoder.features(batch, ["mean"])["mean"])
        encoder.train(training)
        bank, queries = features
        nearest = (F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T).topk(min(20, len(bank)), dim=1)
        labels = self.sets[0].labels.to(bank.device)
        n_classes = len(self.sets[0].classes)
        ((_, vote),) = votes(nearest.values, labels[nearest.indices], n_classes, [nearest.values.shape[1]], 0.07)
        truth = self.sets[1].labels.to(bank.device)
        top1 = multiclass_accuracy(vote.argmax(1), truth, n_classes, average="micro")
        return {"knn": 100 * float(top1), **collapse_meters(bank)}


def collapse_meters(features: Tensor) -> dict[str, float]:
    """How far features are from collapse.

    Args:
        features: (N, D) float.

    Returns:
        ``feature_std``: mean standard deviation of the L2-normalised features times sqrt(D), 1 when they fill the
        sphere, 0 when all are equal. ``effective_rank``: exp(entropy) of the normalised singular values (Roy and
        Vetterli 2007), 1 to D.

    Example:
        >>> collapse_meters(torch.ones(8, 4))
        {'feature_std': 0.0, 'effective_rank': 1.0}
    """
    std = F.normalize(features.float(), dim=1).std(dim=0).mean() * features.shape[1] ** 0.5
    singular = torch.linalg.svdvals((features - features.mean(dim=0)).float())
    p = singular / singular.sum().clamp(min=1e-12)
    entropy = -(p * p.clamp(min=1e-12).log()).sum()
    return {"feature_std": float(std), "effective_rank": float(entropy.exp())}

"""An online k-NN, collapse meters and the use of a codebook, measured while a method trains."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy

from ssl_bench.data.datasets import ImageSet
from ssl_bench.nn.sharding import is_sharded
from ssl_bench.teachers.codes import least_perplexity
from ssl_bench.teachers.dalle import perplexity
from ssl_bench.training.callbacks import Report
from ssl_bench.training.compute import autocast
from ssl_bench.training.health import Diverged, collapse, effective_rank, remedy
from ssl_bench.utils.errors import RunError
from ssl_bench.utils.flags import COLLAPSED
from ssl_bench.utils.stopwatch import part
from ssl_bench.views.evaluation import eval_images, resize_crop

SHARE = 0.01  # of the encoding of a training, at most, goes into looking at it
FEWEST = 128  # images of bank and of queries


class Monitor(Callback):
    """k-NN on held-out training images and collapse meters, a few times a run, logged beside the loss.

    Of a tokenizer it is the use of its codebook. It stands before the ``Report`` among the callbacks.

    Nothing is selected by it, so it takes what a short training can spare (``fit_to``), and at most four times 512
    images of bank and of queries. A collapse is said when it is seen: early on, features of low rank recover, as do
    codes that aren't used. Features that are collapsed at the end put a flag on the encoder; a codebook that is
    collapsed twice in the second half ends the training.
    """

    def __init__(
        self, title: str, report: Report, bank: ImageSet, queries: ImageSet, times: int = 4, size: int = 512
    ) -> None:
        self.title, self.report, self.times = title, report, times
        self.dead = 0  # times in a row that the codebook was collapsed
        generator = torch.Generator().manual_seed(0)
        self.sets = [
            images.subset(torch.randperm(len(images), generator=generator)[:size], "dev") for images in (bank, queries)
        ]

    def fit_to(self, count: float) -> None:
        """Look at so few images that a hundredth of the training's encoding is spent, as far as ``FEWEST`` allows.

        Args:
            count: Images that could be encoded, without gradient, for the price of the encoding that it does.
        """
        size = max(FEWEST, int(count * SHARE) // (2 * self.times))
        self.sets = [images.subset(torch.arange(min(size, len(images))), "dev") for images in self.sets]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure at equal distances.

        Raises:
            RunError: The codebook is collapsed for the second time in the second half, or features are no numbers.
        """
        step, every = trainer.global_step, max(1, trainer.max_steps // self.times)
        if step % every:
            return
        if hasattr(pl_module.encoder, "codebook_size"):
            self.report.extra = self.codes(pl_module, 2 * step >= trainer.max_steps)
        elif hasattr(pl_module.encoder, "features") and len(self.sets[0]) > 1:  # one image has no spread
            every_process = is_sharded(pl_module)
            self.report.extra = self.measure(pl_module) if trainer.is_global_zero or every_process else {}
            if self.report.extra:
                self._judge(pl_module, self.report.extra, step, step + every > trainer.max_steps)

    def _judge(self, method: Any, found: dict[str, float], step: int, last: bool) -> None:
        """Say that features have collapsed, and mark what the training ends with."""
        if not math.isfinite(found["feature_std"]):
            raise Diverged(f"{self.title}: features are no numbers at step {step}; try {remedy(method.category)}")
        reasons = collapse(found["effective_rank"], found["feature_std"], self.dim, len(self.sets[0]))
        if reasons:
            text = f"{self.title}: collapsed at step {step} ({'; '.join(reasons)}); try {remedy(method.category)}"
            print(f"WARNING: {text}", file=sys.stderr, flush=True)
            if last:
                method.flags.append(COLLAPSED)

    @part("monitor")
    @torch.no_grad()
    def codes(self, method: Any, late: bool) -> dict[str, float]:
        """Perplexity of the codes of a tokenizer.

        Raises:
            RunError: It is collapsed for the second time in a row in the second half of the training.
        """
        encoder, training = method.encoder, method.encoder.training
        encoder.eval()
        tokens = []
        for images in self.sets:
            size = method.views[0].sides
            pixels = torch.stack([resize_crop(images.images[i], size) for i in range(len(images))])
            tokens += [encoder.tokens(part.to(method.device) / 255) for part in pixels.split(250)]
        encoder.train(training)
        codes = encoder.codebook_size
        used = float(perplexity(torch.cat(tokens), codes))
        self.dead = self.dead + 1 if late and used < least_perplexity(codes) else 0
        if self.dead == 2:
            raise RunError(
                f"{self.title}: the codebook is dead: the perplexity of its {codes} codes is {used:.1f}; "
                "try another base_lr, batch_size or codebook_size"
            )
        return {"code_perplexity": used}

    @part("monitor")
    @torch.no_grad()
    def measure(self, method: LightningModule) -> dict[str, float]:
        """Accuracy in percent, where images have labels, and the spread of the features."""
        from ssl_bench.metrics.votes import votes  # here: evaluators that train are built on this module

        encoder: Any = method.encoder
        training = encoder.training
        encoder.eval()
        features = []
        for images in self.sets:
            size: Any = method.backbone.image_size  # type: ignore[union-attr]
            pixels = images.decoded
            if pixels is None:
                every = [images.images[i] for i in range(len(images))]
                pixels = torch.stack(every if images.sides else [resize_crop(image, size) for image in every])
            batch = eval_images(pixels.to(method.device), size, encoder.mean, encoder.std)
            with autocast(method.device, method.trainer.precision):
                features.append(encoder.features(batch, ["mean"])["mean"])
        encoder.train(training)
        bank, queries = features
        self.dim = bank.shape[1]
        if not torch.isfinite(bank).all():
            return {"knn": 0.0, "feature_std": math.nan, "effective_rank": math.nan}
        if not self.sets[0].classes:
            return collapse_meters(bank)
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
        sphere, 0 when all are equal. ``effective_rank``: 1 to D, of ``health.effective_rank``.

    Example:
        >>> collapse_meters(torch.ones(8, 4))
        {'feature_std': 0.0, 'effective_rank': 1.0}
    """
    std = F.normalize(features.float(), dim=1).std(dim=0).mean() * features.shape[1] ** 0.5
    singular = torch.linalg.svdvals((features - features.mean(dim=0)).float())
    return {"feature_std": float(std), "effective_rank": effective_rank(singular)}

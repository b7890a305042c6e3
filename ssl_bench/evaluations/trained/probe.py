"""Linear probe as the papers run it: heads on the frozen encoder, trained on random crops, all of a sweep at once.

DINO (Caron et al., ICCV 2021, arXiv:2104.14294, `eval_linear.py`), iBOT (arXiv:2111.07832, `eval_linear_multi.py`),
MoCo v3 (arXiv:2104.02057, `main_lincls.py`), MAE (arXiv:2111.06377, appendix A.1), BEiT (arXiv:2106.08254, appendix D)
and DINOv2 (arXiv:2304.07193, `eval/linear.py`) differ in keywords alone.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result, at_edge, check_features
from ssl_bench.evaluations.selection import choose_head
from ssl_bench.evaluations.trained.probing import HeadGrid, Probing, join, needed, parts_of
from ssl_bench.metrics.metric import accuracies, true_class_rank
from ssl_bench.nn.optimizers import Training
from ssl_bench.training.trainer import train
from ssl_bench.utils.bounds import Area, Count, Natural, NonNegative, Positive, Rate, Seed, Share
from ssl_bench.utils.errors import RunError, UserError, unknown
from ssl_bench.views.view import View

OPTIMIZERS = ("sgd", "lars", "adamw")
SCHEDULES = ("epoch", "step")


class Probe(Evaluator):
    """Softmax regression on features of random crops; a head for each pooling, learning rate and weight decay.

    One forward pass of the frozen encoder a step serves all heads. Each head has two copies that start from the same
    weights: one never learns from a dev image, and is compared with the others on dev; the other learns from all
    training images, and is the one that meets the test images if its twin wins. Dev and test images are centre crops.
    The published protocols report the best epoch on the test images; here the last epoch counts.

    Args:
        base_lr: Learning rates per 256 images.
        weight_decay: Weight decays, of the weights only.
        poolings: Features to compare: what the encoder offers, several of them joined ("last4+mean"), or "layers" for
            the mean patch token of every block.
        optimizer: sgd, lars or adamw.
        momentum: Of SGD and LARS; AdamW's first beta.
        epochs: Passes over the training images.
        warmup_epochs: Linear rise of the learning rate from 0; then it falls to 0 on a cosine.
        schedule: Change the learning rate every "epoch" or every "step".
        batch_size: Images a step, or all of them if there are fewer.
        drop_last: Leave the images that do not fill a last batch out of an epoch; otherwise they are a smaller batch,
            except for a single image under ``batch_norm``, which can't be normalised over itself.
        batch_norm: Normalise each dimension over the batch, without affine parameters (eps 1e-6), and with the running
            statistics on dev and test images.
        init_std: Standard deviation of the initial weights; biases start at 0.
        crop_scale: Range of the crop's share of the image area.
        interpolation: Of the crops: bilinear or bicubic.
        flip: Probability of a horizontal flip.
        seed: Seed of the initial weights, the order of images and the crops.

    Raises:
        UserError: An empty grid, or a value out of range.
    """

    version: ClassVar[int] = 2
    joint: ClassVar[bool] = True
    engines: ClassVar[tuple[str, ...]] = ("features", "training", "views")
    metric_help: ClassVar[dict[str, str]] = {
        "top1": "accuracy, percent",
        "top5": "truth among the five classes with the highest scores, percent",
    }

    def __init__(
        self,
        base_lr: tuple[Positive, ...] = (0.001,),
        weight_decay: tuple[NonNegative, ...] = (0.0,),
        poolings: tuple[str, ...] = ("cls",),
        optimizer: str = "sgd",
        momentum: Rate = 0.9,
        epochs: Count = 100,
        warmup_epochs: Natural = 0,
        schedule: str = "epoch",
        batch_size: Count = 1024,
        drop_last: bool = False,
        batch_norm: bool = False,
        init_std: NonNegative = 0.01,
        crop_scale: tuple[Area, Area] = (0.08, 1.0),
        interpolation: str = "bilinear",
        flip: Share = 0.5,
        seed: Seed = 0,
    ) -> None:
        self.base_lr = tuple(base_lr)
        self.weight_decay = tuple(weight_decay)
        self.poolings = tuple(poolings)
        self.optimizer = optimizer
        self.momentum = momentum
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.schedule = schedule
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.batch_norm = batch_norm
        self.init_std = init_std
        self.crop_scale = crop_scale
        self.interpolation = interpolation
        self.flip = flip
        self.seed = seed
        if min(self.base_lr, default=0) <= 0 or min(self.weight_decay, default=-1) < 0:
            raise UserError(f"probe: base_lr must be > 0 and weight_decay >= 0, got {base_lr} and {weight_decay}")
        if optimizer not in OPTIMIZERS:
            raise unknown("probe optimizer", optimizer, OPTIMIZERS)
        if schedule not in SCHEDULES:
            raise unknown("probe schedule", schedule, SCHEDULES)
        if epochs < 1 or batch_size < 2:
            raise UserError(f"probe: epochs must be at least 1 and batch_size 2, got {epochs} and {batch_size}")
        if not 0 <= warmup_epochs <= epochs or not 0 <= momentum < 1 or init_std < 0 or seed < 0:
            raise UserError(
                f"probe: warmup_epochs {warmup_epochs} must lie in [0, epochs], momentum {momentum} in [0, 1), "
                f"init_std {init_std} and seed {seed} must not be negative"
            )
        self.view(32)

    def view(self, size: int | tuple[int, int]) -> View:
        """The crop that heads learn from."""
        return View(size, scale=self.crop_scale, interpolation=self.interpolation, flip=self.flip)

    def training_config(self, n: int) -> Training:
        """The training on N images; its learning rate is that of base_lr 1."""
        return Training(
            epochs=self.epochs,
            batch_size=min(self.batch_size, n),
            optimizer=self.optimizer,
            base_lr=1.0,
            warmup_epochs=self.warmup_epochs,
            betas=(self.momentum, 0.999),
        )

    def head_grid(self, dim: int, classes: int, count: int) -> HeadGrid:
        """Untrained heads on features of D dimensions."""
        return HeadGrid(dim, classes, count, batch_norm=self.batch_norm, std=self.init_std, seed=self.seed)

    def features(self, encoder: Encoder, images: ImageSet) -> dict[str, Tensor]:
        """Checked features of one split under each wanted pooling, joined ones included."""
        parts = parts_of(self.poolings, encoder.poolings)
        found = join(encoder.features(images, needed(parts)), parts)
        for pooling, features in found.items():
            check_features(features, pooling, images.split, len(images))
        return found

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Train every head twice at once, choose among those that spare dev, score the winner's twin on test once.

        Raises:
            UserError: The encoder has none of the poolings.
            RunError: Features that mean nothing, or no head of the grid stayed finite.
        """
        # Before the training, so that a collapse costs nothing. As a set of its own: heads learn from crops, so the
        # features of all training images (of all layers: 47 GB for ImageNet and a ViT-B) would be for these few alone.
        dev = self.features(encoder, replace(data.dev, origin=None))
        grid = list(itertools.product(self.base_lr, self.weight_decay))
        n_heads = len(dev) * len(grid)
        choosing, reporting = (
            {pooling: self.head_grid(x.shape[1], len(data.train.classes), len(grid)) for pooling, x in dev.items()}
            for _ in range(2)
        )
        network: Any = encoder.copy()
        probing = Probing(
            network,
            parts=parts_of(self.poolings, encoder.poolings),
            choosing=choosing,
            reporting=reporting,
            grid=grid,
            is_fit=fit_images(data),
            training_config=self.training_config(len(data.train)),
            view=self.view(network.image_size),
            by_epoch=self.schedule == "epoch",
            seed=self.seed,
        )
        alone = self.batch_norm and len(data.train) % probing.training_config.batch_size == 1
        title = f"linear probe, {n_heads} head{'s' * (n_heads > 1)}"
        cost = train(probing, data.train, encoder.folder, title, drop_last=self.drop_last or alone, uneven=True)
        # The meter counts the patches of forward passes of a backbone, and sees none in its `features`.
        patches = math.prod(network.grid) if getattr(network, "can_train", False) else 0  # raw pixels are not encoded
        cost["patches_encoded_without_gradient"] = patches * cost["images_seen"]

        tried: dict[tuple[str, float, float], tuple[float, float]] = {}  # settings -> dev accuracy, -dev loss
        for pooling, x in dev.items():
            found = choosing[pooling].heads(range(len(grid))).evaluate(x, data.dev.labels)
            tried |= {(pooling, *settings): on_dev for settings, on_dev in zip(grid, found, strict=True)}
        (pooling, lr, decay), facts = choose_head("probe", tried, f"base_lr {self.base_lr} needs smaller values")
        winner = reporting[pooling].heads([grid.index((lr, decay))])
        if not torch.isfinite(winner.weight).all():
            raise RunError(f"probe: the head with base_lr {lr} diverged when trained on all training images")
        rank = true_class_rank(winner.scores(self.features(encoder, data.test)[pooling])[:, 0], data.test.labels)
        chosen: dict[str, object] = {
            "pooling": pooling,
            "base_lr": lr,
            "lr": lr * probing.training_config.lr,
            "weight_decay": decay,
            **facts,
            "lr_at_edge": at_edge(lr, self.base_lr),
            "batch_size": probing.training_config.batch_size,
            "steps": cost["steps"],
        }
        correct = (rank == 0).numpy()
        return Result(accuracies(rank), "top1", correct, chosen, pooling, cost, selected=n_heads > 1)


def fit_images(data: Data) -> Tensor:
    """Which of the training images are not in dev, (N,) bool."""
    assert data.dev.origin is not None and data.dev.origin[0] is data.train, "dev must be a subset of train"
    is_fit = torch.ones(len(data.train), dtype=torch.bool)
    is_fit[data.dev.origin[1]] = False
    return is_fit

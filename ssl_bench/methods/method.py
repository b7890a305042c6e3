"""The base class of every method: what an author writes, and the step that turns it into training."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_bench.backbone import Backbone
from ssl_bench.optim import Training, build_optimizer, cosine, no_decay_on_vectors, warmup_cosine
from ssl_bench.views import View, make_views


class Method(LightningModule):
    """A self-supervised method.

    An author writes the class attributes, a constructor whose keywords are the paper's hyper-parameters with its
    ImageNet values as defaults, ``views`` and ``loss``; and, where the method needs them, ``after_step``, ``encoder``,
    ``param_groups`` and ``show``. ``examples/simclr.py`` is a whole method.

    Attributes:
        paper: Citation, with the arXiv number.
        category: contrastive | self-distillation | reconstruction | token prediction | feature regression.
        defaults: The paper's ImageNet training; a recipe overrides single values.
        backbone_options: What the paper's backbone needs (``Backbone`` keywords).
        deviations: Every known difference from the paper, one sentence each; they travel into the rows.
        uses_labels: The loss reads ``self.labels``. Rows carry the flag, and the dev images are kept from training.
        trains: False for baselines that have nothing to train.

    While it trains, ``self.progress`` is the part of the training done before this step (0 to 1) and ``self.epoch``
    the same in epochs; they drive momentum and temperature schedules.
    """

    paper: ClassVar[str]
    category: ClassVar[str]
    defaults: ClassVar[Training] = Training()
    backbone_options: ClassVar[dict[str, Any]] = {}
    deviations: ClassVar[tuple[str, ...]] = ()
    uses_labels: ClassVar[bool] = False
    trains: ClassVar[bool] = True

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.plan = self.defaults
        self.seed = 0
        self.progress = 0.0
        self.epoch = 0.0
        self.labels: Tensor | None = None
        self.scalars: dict[str, Tensor] = {}

    # What an author writes ------------------------------------------------------------------------------------------

    @property
    def views(self) -> list[View]:
        """The crops of each image, as data."""
        raise NotImplementedError

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """The loss of one batch.

        Args:
            views: One (B, 3, H, W) float tensor a crop, in the order of ``self.views``.

        Returns:
            ``"loss"`` and any scalars worth logging.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after each optimiser step: EMA and centre updates that come last."""

    @property
    def encoder(self) -> nn.Module:
        """What evaluators see: the backbone unless the paper evaluates another branch (DINO: the teacher)."""
        return self.backbone

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups; by default no weight decay on vectors, which is timm's and MAE's rule."""
        return no_decay_on_vectors(self.named_parameters(), weight_decay)

    # What is free -----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Optimizer:
        """The recipe's optimiser; rates are set before each step."""
        return build_optimizer(self.param_groups(self.plan.weight_decay), self.plan, self.plan.lr)

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Place this step in the schedules, and make its randomness a function of (seed, step) alone."""
        step, steps = batch["step"], self.trainer.max_steps
        self.progress = step / steps
        self.epoch = self.progress * self.plan.epochs
        torch.manual_seed(step_seed(self.seed, step, self.global_rank))
        plan = self.plan
        lr = warmup_cosine(self.epoch, plan.lr, min(plan.warmup_epochs, plan.epochs), plan.epochs, plan.min_lr)
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group["lr"] = lr * group.get("lr_scale", 1.0)
            if plan.final_weight_decay is not None and group["weight_decay"]:
                group["weight_decay"] = cosine(self.progress, plan.weight_decay, plan.final_weight_decay)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Views, then the loss. Batches carry uint8 images (views are drawn here) or ready views."""
        if "views" in batch:
            views = batch["views"]
        else:
            images = batch["images"]
            generator = torch.Generator(images.device).manual_seed(
                step_seed(self.seed, batch["step"], self.global_rank) + 1
            )
            with torch.autocast(images.device.type, enabled=False):
                views = make_views(images, self.views, generator)
        self.labels = batch["labels"] if self.uses_labels else None
        self.scalars = self.loss(views)
        return self.scalars["loss"]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The update, then whatever the method updates last; a checkpoint always sees both."""
        super().optimizer_step(*args, **kwargs)
        self.after_step()


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """A seed for one step of one process, spread over 62 bits (splitmix64).

    Example:
        >>> step_seed(0, 1) != step_seed(1, 0) != step_seed(0, 0, 1)
        True
    """
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xD1342543DE82EF95 + rank * 0xA0761D6478BD642F + 1) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 31)) >> 2

"""The base class of every method: what an author writes, and the step that turns it into training."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_bench.backbones import check_needs
from ssl_bench.backbones.backbone import RGB, Backbone
from ssl_bench.methods.returned import wrong_loss
from ssl_bench.nn.accumulation import parts_of, rows_of_batch
from ssl_bench.nn.optimizers import Training, build_optimizer, clip_each, no_decay_on_vectors, set_weight_decay
from ssl_bench.nn.sharding import clip_norm, shard
from ssl_bench.utils.distributed import one_process
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.seeds import step_seed as step_seed
from ssl_bench.utils.stopwatch import part
from ssl_bench.views.make import make_views
from ssl_bench.views.view import IMAGENET_MEAN, IMAGENET_STD, View

if TYPE_CHECKING:
    from ssl_bench.data.datasets import ImageSet


class Method(LightningModule):
    """A self-supervised method.

    An author writes the class attributes, a constructor whose keywords are the paper's hyper-parameters with its
    ImageNet values as defaults, ``views`` and ``loss``; and, where the method needs them, ``before_step``,
    ``after_step``, ``encoder``, ``param_groups``, ``set_teacher``, ``prepare``, ``finish`` and ``show``.
    ``examples/vicreg.py`` is a whole method.

    Attributes:
        version: Raised by every change that can move a number of the method; rows of an older version are stale.
        paper: Citation, with the arXiv number.
        category: contrastive | self-distillation | reconstruction | token prediction | feature regression.
        defaults: The paper's ImageNet training; a recipe overrides single values.
        needs: What it asks of a backbone: keys of ``backbones.ABILITIES``; ``multi_crop`` only where the
            keyword ``n_local`` isn't 0.
        backbone_options: The paper's backbone: options of a family, which others take as far as they have them.
        input_statistics: Mean and std, per channel, on the scale [0, 1], of the images that the paper's backbone sees,
            where they are not ImageNet's; a backbone that brings none of its own takes them, and keeps them in its
            file, so that evaluations normalise as the training did.
        deviations: Every known difference from the paper, one sentence each; they travel into the rows.
        uses_labels: The loss reads ``self.labels``. Rows carry the flag, and the dev images are kept from training.
        trains: False for baselines that have nothing to train.
        recipes: Recipes of a method from outside the package, as files are for ours: name -> keys and values.
        teachers: Keywords that name a frozen network the loss compares with: a tokenizer, a teacher. In a recipe such a
            keyword may be ``NAME`` or ``NAME:RECIPE`` of ``TEACHERS`` or ``METHODS``, which is then pre-trained first,
            on the same backbone.

    While it trains, ``self.progress`` is the part of the training done before this step (0 to 1) and ``self.epoch``
    the same in epochs; they drive momentum and temperature schedules.
    """

    version: ClassVar[int] = 1
    paper: ClassVar[str]
    category: ClassVar[str]
    defaults: ClassVar[Training] = Training()
    needs: ClassVar[tuple[str, ...]] = ()
    backbone_options: ClassVar[dict[str, Any]] = {}
    input_statistics: ClassVar[tuple[RGB, RGB] | None] = None
    deviations: ClassVar[tuple[str, ...]] = ()
    uses_labels: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    teachers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        needs = self.needed({"n_local": 0})  # local crops are checked where they are made
        if needs:
            check_needs(type(self).__name__, type(backbone), backbone.spec, needs)
        self.backbone = backbone
        if self.input_statistics and "mean" not in vars(backbone):
            backbone.mean, backbone.std = self.input_statistics
        self.statistics = (backbone.mean, backbone.std)
        self.training_config = self.defaults
        self.seed = 0
        self.progress = 0.0
        self.epoch = 0.0
        self.labels: Tensor | None = None
        self.scalars: dict[str, Tensor] = {}
        self.flags: list[str] = ["labels"] if self.uses_labels else []  # what a reader must know to compare fairly
        self._step: int | None = None
        self._draws = 0

    @classmethod
    def needed(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """``needs`` with these values of the constructor's keywords; of whatever trains, weights as well."""
        needs = [need for need in cls.needs if need != "multi_crop" or settings.get("n_local", 1)]
        return (*(["train"] if cls.trains else []), *needs)

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

    def before_step(self) -> None:
        """Called when the gradients are there, before they are clipped: set those of frozen layers to None here."""

    def after_step(self) -> None:
        """Called after each optimiser step: EMA and centre updates that come last."""

    def set_teacher(self, keyword: str, network: nn.Module | None, source: str = "") -> None:
        """Take a teacher, once, before the training. Keep it out of the state dict: in a tuple, for example.

        Args:
            keyword: One of ``teachers``.
            network: The network, frozen, that the suite has trained or that ``checkpoint:PATH`` names; None when the
                keyword's value is neither.
            source: Where its weights come from, in words.
        """
        raise NotImplementedError

    def prepare(self, images: ImageSet) -> None:
        """Called before the training, with its images and after the teachers; not when it goes on from a checkpoint.

        What is found here must stand in the state dict.
        """

    def finish(self, images: ImageSet) -> dict[str, Any]:
        """Called after the training, with its images.

        Returns:
            Plain values for the row: codebook usage, the name of the teacher.

        Raises:
            RunError: What was trained must not be used.
        """
        return {}

    @property
    def encoder(self) -> nn.Module:
        """What evaluators see: the backbone unless the paper evaluates another branch (DINO: the teacher)."""
        return self.backbone

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups; by default no weight decay on vectors, which is timm's and MAE's rule.

        Returns:
            Groups as torch's optimisers take them. One with a ``weight_decay`` keeps it, 0.0 being exempt; one without
            follows the recipe's. ``lr_scale`` multiplies a group's learning rate.
        """
        return no_decay_on_vectors(self.named_parameters())

    def learning_rate(self, step: int, steps: int) -> float:
        """The rate of the step after ``step`` of ``steps``: by default the recipe's schedule."""
        return self.training_config.lr_at(step, steps)

    @property
    def current_momentum(self) -> float | None:
        """Momentum of this step's moving average, for the learning curves; None without one."""
        return None

    def show(self, images: Tensor) -> dict[str, Tensor]:
        """The method's own picture, if it has one.

        Args:
            images: (B, 3, H, W) float32 pixels in [0, 1], at the backbone's size.

        Returns:
            Title -> (B, 3, H, W) pixels in [0, 1].
        """
        return {}

    # For authors to call ---------------------------------------------------------------------------------------------

    def uniform(self, *shape: int) -> Tensor:
        """Uniform draws on [0, 1) for masks.

        Args:
            shape: (B, ...), B images of this process.

        Returns:
            float32: this process's rows of what is drawn for the joint batch, so that the number of processes doesn't
            change a run.
        """
        rank, world = rows_of_batch()
        generator = None
        if self._step is not None:
            generator = torch.Generator(self.device).manual_seed(step_seed(self.seed, self._step) + 2 + self._draws)
            self._draws += 1
        rows = torch.rand(shape[0] * world, *shape[1:], generator=generator, device=self.device)
        return rows[rank * shape[0] : (rank + 1) * shape[0]]

    @property
    def drawn_views(self) -> list[View]:
        """``views``; those of ImageNet's statistics with the backbone's own, but for what a teacher sees (``same``)."""
        mean, std = self.statistics
        seen = [not view.same and (view.mean, view.std) == (IMAGENET_MEAN, IMAGENET_STD) for view in self.views]
        return [replace(v, mean=mean, std=std) if own else v for v, own in zip(self.views, seen, strict=True)]

    # Called by the trainer -------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Shard the blocks, where the trainer has a mesh for it."""
        if self.device_mesh is not None:
            shard(self, self.device_mesh["data_parallel"], "training_step")

    def configure_optimizers(self) -> Optimizer:
        """The recipe's optimiser; rates are set before each step."""
        return build_optimizer(self.param_groups(), self.training_config, self.training_config.lr)

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Place this step in the schedules, and make its randomness a function of (seed, step) alone."""
        step, steps = batch["step"], self.trainer.max_steps
        self.progress = step / steps
        self.epoch = step * self.training_config.epochs / steps  # in this order, whole epochs come out whole
        self._step, self._draws = step, 0
        seed = step_seed(self.seed, step, self.global_rank)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":  # on a CPU it would queue a call and a stack trace for CUDA each time
            torch.cuda.manual_seed(seed)
        optimizer: Any = self.optimizers()
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(step, steps) * group.get("lr_scale", 1.0)
        if self.training_config.final_weight_decay is not None:
            set_weight_decay(optimizer, self.training_config.weight_decay_at(step, steps))

    @part("forward")
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Views, then the loss. Batches carry uint8 images (views are drawn here) or ready views.

        What several processes couldn't share evenly each computes whole; the mean of their gradients is the gradient.
        """
        with one_process() if batch.get("whole") else contextlib.nullcontext():
            if (count := self.training_config.accumulate) == 1:
                return self._step_loss(batch)
            cast(Any, self.optimizers()).zero_grad()  # the parts' gradients add up; the last part's loss is returned
            found = []
            for piece in parts_of(batch, count):
                self._draws = 0
                loss = self._step_loss(piece) / count
                found.append({key: value.detach() for key, value in self.scalars.items()})
                if len(found) < count:
                    with torch.autocast(self.device.type, enabled=False):  # as of the last part: gradients of float32
                        self.trainer.strategy.backward(loss, None)
            self.scalars = {key: torch.stack([each[key] for each in found]).mean(dim=0) for key in found[0]}
            return loss

    def _step_loss(self, batch: dict[str, Any]) -> Tensor:
        self.labels = batch["labels"] if self.uses_labels else None
        self.scalars = self.checked_loss(batch.get("views") or self._draw(batch["images"], batch["step"]))
        return self.scalars["loss"]

    @part("views")
    def _draw(self, images: Tensor, step: int) -> list[Tensor]:
        generator = torch.Generator(images.device).manual_seed(step_seed(self.seed, step) + 1)
        with torch.autocast(images.device.type, enabled=False):
            return make_views(images, self.drawn_views, generator, rows_of_batch())

    def checked_loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """``loss``, of the kind that it must be; a ``UserError`` where it is something else."""
        found: Any = self.loss(views)
        if wrong := wrong_loss(found):
            said = f"{type(self).__name__}.loss returns {wrong}"
            raise UserError(f"{said}; it must be a dict whose 'loss' is a scalar tensor")
        return cast("dict[str, Tensor]", found)

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Parts of a batch have left their gradients before this is called."""
        if self.training_config.accumulate == 1:
            super().optimizer_zero_grad(*args, **kwargs)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """The method's own say on the gradients."""
        self.before_step()

    def configure_gradient_clipping(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        """The recipe's clipping: of the global norm, or of each tensor's."""
        if self.training_config.clip_grad:
            clip = clip_each if self.training_config.clip_per_tensor else clip_norm
            clip(self.parameters(), self.training_config.clip_grad)

    @part("optimiser")
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The update, then whatever the method updates last; a checkpoint always sees both."""
        super().optimizer_step(*args, **kwargs)
        self.after_step()

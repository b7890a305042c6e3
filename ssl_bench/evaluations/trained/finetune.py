"""End-to-end fine-tuning: the encoder and a linear classifier trained together on labelled images.

MAE (He et al., CVPR 2022, arXiv:2111.06377, appendix A.1), BEiT (Bao et al., ICLR 2022, arXiv:2106.08254, appendix) and
DeiT (Touvron et al. 2021, arXiv:2012.12877; the fine-tuning of MoCo v3 and DINO); partial fine-tuning as in MAE,
figure 9. With few labels it is the semi-supervised protocol of SimCLR and iBOT.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ssl_bench.backbones.backbone import RGB, Backbone
from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result, at_edge, name_of
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.evaluations.subsets import balanced_subset, listed
from ssl_bench.evaluations.trained.finetuning import Classifier, mixing, total, training_view
from ssl_bench.evaluations.trained.network import POOLINGS, Network, pooled_by
from ssl_bench.metrics.intervals import repeated_metric
from ssl_bench.metrics.metric import Metric, accuracy_metric, true_class_rank
from ssl_bench.nn.optimizers import Training
from ssl_bench.nn.schedules import Schedule
from ssl_bench.training.health import Diverged
from ssl_bench.training.resume import remove_checkpoints
from ssl_bench.training.trainer import train
from ssl_bench.utils.bounds import Area, Count, Epochs, Few, NonNegative, Positive, Rate, Seed, Share
from ssl_bench.utils.distributed import first_says, is_first
from ssl_bench.utils.errors import RunError, UserError, unknown
from ssl_bench.utils.files import content_hash, is_whole, write_atomic
from ssl_bench.utils.weights import weights_hash
from ssl_bench.views.execution import seeded
from ssl_bench.views.view import IMAGENET_MEAN, View


class FineTune(Evaluator):
    """Accuracy of the encoder after it was trained on the labels. The weights after the last epoch are evaluated.

    AdamW with layer-wise decay of the learning rate (`Classifier.param_groups`), linear warm-up and cosine. With
    several `base_lr` each is trained on fit and compared on dev, and the winner's settings are trained afresh on all
    training images; with one nothing is chosen, dev labels are training labels, and there is one run.
    The positions are trained too, fixed sine-cosine ones included, as in the fine-tuning code of MAE and DeiT.

    Args:
        epochs: Passes over the training images.
        batch_size: Crops a step, at most as many as there are labelled images; mixup and cutmix drop an image of an odd
            number of crops.
        base_lr: Learning rates per 256 crops to compare on dev, or the one to use: lr = base_lr x batch_size / 256.
        min_lr: Learning rate at the end, absolute.
        warmup_epochs: Linear rise of the learning rate from ``warmup_lr``.
        warmup_lr: Learning rate of the first step, absolute.
        schedule: "step" (MAE), "step_inclusive" (BEiT, iBOT, EVA) or "epoch" (DeiT), as of a recipe.
        weight_decay: None on biases, norms, positions and the cls token.
        betas: Adam's.
        clip_grad: Largest global gradient norm; no limit when null or 0.
        layer_decay: Factor on the learning rate for every block further from the head; 1 is off.
        drop_path: Stochastic depth of the last block, rising linearly from 0; frozen blocks are never dropped.
        mixup: Alpha of mixup; 0 is off.
        cutmix: Alpha of cutmix; 0 is off.
        mixup_p: Probability that a batch is mixed.
        switch_p: Probability of cutmix where mixup is on too.
        smoothing: Label smoothing, part of the mixed targets.
        randaugment: timm's RandAugment string; none when empty.
        color_jitter: Strength of brightness, contrast and saturation; RandAugment turns it off, as in timm.
        erasing: Probability of random erasing.
        erasing_mode: "pixel", "rand" or "const", as in timm.
        crop_min: Smallest area of the random crop.
        interpolation: "bicubic" or "bilinear", of training crops; test images are always resized bicubically.
        repeated_augmentation: Crops of an image in a step (Hoffer et al. 2020, arXiv:1901.09335). An epoch has as many
            crops as without, so of fewer images; all images are met in turn, where DeiT draws anew every epoch.
        ema: Decay of a moving average of the weights, which is then what is evaluated; none when null.
        pooling: "mean" of the patches without the encoder's final norm, but with a new one behind the mean (MAE, BEiT);
            "cls" after the final norm (DeiT).
        blocks: How many of the last blocks are trained, with the final norm and the head; null is all and the
            embeddings, 0 the head alone (with its norm, if pooling is "mean").
        head_init: Standard deviation of the head's first weights.
        fraction: Share of the training images that have labels, drawn as in `LowShot`.
        draws: Draws of the labelled images and seeds of the training, to average over.
        lists: Files that name the labelled images instead, one a draw, as in `LowShot`.
        seed: Of the first draw, the order of images, the crops and the head.

    Raises:
        UserError: A value out of range, a policy timm cannot read, or a batch that cannot be divided.
    """

    version: ClassVar[int] = 1
    joint: ClassVar[bool] = True
    engines: ClassVar[tuple[str, ...]] = ("training", "views")
    metric_help: ClassVar[dict[str, str]] = {
        "top1": "accuracy (mean over draws), percent",
        "top5": "truth among the five classes with the highest scores, percent",
    }
    poolings = ()  # none of the frozen features are used
    encoder_needs = ("train",)

    def __init__(
        self,
        epochs: Epochs = 100,
        batch_size: Count = 1024,
        base_lr: Positive | tuple[Positive, ...] = 5e-4,
        min_lr: NonNegative = 1e-6,
        warmup_epochs: Epochs = 5,
        warmup_lr: NonNegative = 0.0,
        schedule: Schedule = "step",
        weight_decay: NonNegative = 0.05,
        betas: tuple[Rate, Rate] = (0.9, 0.999),
        clip_grad: NonNegative | None = None,
        layer_decay: Area = 0.65,
        drop_path: Rate = 0.1,
        mixup: NonNegative = 0.8,
        cutmix: NonNegative = 1.0,
        mixup_p: Share = 1.0,
        switch_p: Share = 0.5,
        smoothing: Share = 0.1,
        randaugment: str = "rand-m9-mstd0.5-inc1",
        color_jitter: NonNegative = 0.0,
        erasing: Share = 0.25,
        erasing_mode: str = "pixel",
        crop_min: Area = 0.08,
        interpolation: str = "bicubic",
        repeated_augmentation: Count = 1,
        ema: Rate | None = None,
        pooling: str = "mean",
        blocks: Few | None = None,
        head_init: NonNegative = 2e-5,
        fraction: Area = 1.0,
        draws: Count = 1,
        lists: tuple[str, ...] = (),
        seed: Seed = 0,
    ) -> None:
        self.epochs, self.batch_size, self.min_lr, self.warmup_epochs = epochs, batch_size, min_lr, warmup_epochs
        self.base_lr = (base_lr,) if isinstance(base_lr, int | float) else tuple(base_lr)
        self.warmup_lr, self.schedule = warmup_lr, schedule
        self.weight_decay, self.betas, self.clip_grad = weight_decay, (betas[0], betas[1]), clip_grad
        self.layer_decay, self.drop_path, self.smoothing = layer_decay, drop_path, smoothing
        self.mixup, self.cutmix, self.mixup_p, self.switch_p = mixup, cutmix, mixup_p, switch_p
        self.randaugment, self.color_jitter, self.crop_min = randaugment, color_jitter, crop_min
        self.erasing, self.erasing_mode, self.interpolation = erasing, erasing_mode, interpolation
        self.repeated_augmentation, self.ema = repeated_augmentation, ema
        self.pooling, self.blocks, self.head_init = pooling, blocks, head_init
        self.fraction, self.draws, self.lists, self.seed = fraction, draws, tuple(lists), seed
        for name in ("drop_path", "mixup_p", "switch_p", "smoothing", "erasing"):
            _check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "must lie in [0, 1]")
        for name in ("layer_decay", "crop_min", "fraction"):
            _check(0 < getattr(self, name) <= 1, name, getattr(self, name), "must lie in (0, 1]")
        for name in ("mixup", "cutmix", "color_jitter", "head_init", "seed"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "must be at least 0")
        for name in ("repeated_augmentation", "draws"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        _check(epochs > 0, "epochs", epochs, "must be above 0")
        _check(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "must lie in [0, 1)")
        _check(clip_grad is None or clip_grad >= 0, "clip_grad", clip_grad, "must be null or at least 0")
        _check(ema is None or 0 <= ema < 1, "ema", ema, "must be null or lie in [0, 1)")
        _check(blocks is None or blocks >= 0, "blocks", blocks, "must be null or at least 0")
        _check(min(self.base_lr, default=0) > 0, "base_lr", base_lr, "must be above 0")
        divided = batch_size % repeated_augmentation == 0
        _check(divided, "batch_size", batch_size, "must be a multiple of repeated_augmentation")
        if pooling not in POOLINGS:
            raise unknown("fine-tuning pooling", pooling, POOLINGS)
        if erasing_mode not in ("pixel", "rand", "const"):
            raise unknown("erasing mode", erasing_mode, ("pixel", "rand", "const"))
        if interpolation not in ("bicubic", "bilinear"):
            raise unknown("interpolation", interpolation, ("bicubic", "bilinear"))
        self._training_config(self.base_lr[0], batch_size), self._view((32, 32), IMAGENET_MEAN)

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Choose the learning rate on dev if there are several, train on all training images, score test once.

        Raises:
            UserError: The encoder cannot be trained, has fewer blocks, or a list does not fit the images.
            RunError: The training diverged.
        """
        dev_top1: dict[float, float] = {}
        spent: list[dict[str, Any]] = []
        for base_lr in self.base_lr if len(self.base_lr) > 1 else ():
            try:
                runs = [self._ranks(encoder, i, base_lr, d, data.dev) for d, i in enumerate(self._labelled(data.fit))]
            except Diverged:
                continue
            dev_top1[base_lr] = 100 * float(torch.stack([ranks for ranks, _ in runs]).eq(0).double().mean())
            spent += [cost for _, cost in runs]
        if len(self.base_lr) > 1 and not dev_top1:
            raise RunError(f"finetune: every base_lr of {self.base_lr} diverged; smaller ones are needed")
        best = max(dev_top1, key=dev_top1.__getitem__, default=self.base_lr[0])
        runs = [self._ranks(encoder, i, best, d, data.test) for d, i in enumerate(self._labelled(data.train))]
        spent += [cost for _, cost in runs]

        ranks, last = torch.stack([found for found, _ in runs]), runs[-1][1]
        metrics: dict[str, Metric] = {}
        for top in (1, 5):
            right = (ranks < top).double()
            several = repeated_metric(100 * right.mean(1), 100 * right.mean(0))
            metrics[f"top{top}"] = several if len(runs) > 1 else accuracy_metric((ranks[0] < top).numpy())
        chosen: dict[str, object] = {
            "base_lr": best,
            "lr": best * last["batch_size"] * self.repeated_augmentation / 256,
            "dev_top1": dev_top1.get(best),
            "dev_top1_by_base_lr": {f"{base_lr:g}": top1 for base_lr, top1 in dev_top1.items()},
            "diverged": [base_lr for base_lr in self.base_lr if dev_top1 and base_lr not in dev_top1],
            "lr_at_edge": at_edge(best, self.base_lr),
            "labelled_images": last["labelled_images"],
            "trained_parameters": last["trained_parameters"],
            "weights": "last step" if self.ema is None else "moving average at the last step",
            "population_std_over_draws": 100 * float((ranks == 0).double().mean(1).std(correction=0)),
            "lists_sha256": [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in self.lists],
        }
        pooling = pooled_by(self.pooling, encoder.poolings)
        right = ranks == 0
        correct = (right[0] if len(runs) == 1 else right.double().mean(0)).numpy()
        return Result(metrics, "top1", correct, chosen, pooling, total(spent), selected=len(self.base_lr) > 1)

    def _labelled(self, images: ImageSet) -> Iterator[ImageSet]:
        """The images with a label, one set a draw."""
        for draw in range(len(self.lists) or self.draws):
            if self.lists:
                rows = listed(images, self.lists[draw])
            else:
                rows = balanced_subset(images.labels, len(images.classes), self.fraction, self.seed + draw)
            yield images if len(rows) == len(images) else images.subset(rows, images.split)

    def _ranks(
        self, encoder: Encoder, images: ImageSet, base_lr: float, draw: int, evaluated: ImageSet
    ) -> tuple[Tensor, dict[str, Any]]:
        """Train on some images and evaluate on others: `true_class_rank` (N,) of these, and what the training took.

        A finished training is kept in the encoder's folder, so that an interruption costs nothing that is done.
        """
        network = encoder.copy()
        if not isinstance(network, Backbone) or not network.can_train:
            raise UserError(f"finetune: {name_of(network)} has nothing to train")
        made = [weights_hash(network.state_dict()), network.mean, network.std]
        what = [self.version, self.settings(), *made, images.fingerprint, base_lr, draw]
        folder = encoder.folder / content_hash(what)[:16]
        method = self._classifier(network, images, base_lr, self.seed + draw)
        if not first_says(is_whole(folder / "done.pt")):
            title = f"fine-tuning, base_lr {base_lr:g}, seed {self.seed + draw}"
            cost = train(method, images, folder, title, uneven=True)
            if is_first():
                buffer = io.BytesIO()
                torch.save({"weights": method.encoder.state_dict(), "cost": cost}, buffer)
                write_atomic(folder / "done.pt", buffer.getvalue())
                remove_checkpoints(folder)
            first_says(None)  # the file is there when any process goes on
        done = torch.load(folder / "done.pt", map_location="cpu", weights_only=True)
        method.encoder.load_state_dict(done["weights"])
        found = FrozenEncoder(method.encoder).features(replace(evaluated, origin=None), ["logits"])
        if not torch.isfinite(found["logits"]).all():
            raise Diverged(f"finetune: base_lr {base_lr} diverged")
        trained = sum(p.numel() for p in method.network.parameters() if p.requires_grad)
        facts = {"labelled_images": len(images), "trained_parameters": trained}
        return true_class_rank(found["logits"], evaluated.labels), {**done["cost"], **facts}

    def _classifier(self, backbone: Backbone, images: ImageSet, base_lr: float, seed: int) -> Classifier:
        """The network to train, with everything that the training needs."""
        classes = len(images.classes)
        with seeded(seed):
            network = Network(backbone, classes, self.pooling, self.blocks, self.drop_path, self.head_init)
        mixed = (self.mixup, self.cutmix, self.mixup_p, self.switch_p, self.smoothing)
        mix = mixing(classes, *mixed, self.erasing, self.erasing_mode)
        method = Classifier(network, self._view(network.image_size, network.mean), mix, self.layer_decay, self.ema)
        method.training_config, method.seed = self._training_config(base_lr, len(images)), seed
        return method

    def _view(self, size: tuple[int, int], mean: RGB) -> View:
        looks = (self.crop_min, self.interpolation, self.randaugment, self.color_jitter)
        return training_view(size, *looks, self.repeated_augmentation, mean)

    def _training_config(self, base_lr: float, images: int) -> Training:
        """The training on so many images; with repeated augmentation a step has fewer of them, and an epoch more."""
        repeats = self.repeated_augmentation
        batch_size = min(self.batch_size // repeats, images)
        if self.mixup or self.cutmix:
            batch_size -= batch_size * repeats % 2
            _check(batch_size > 0, "batch_size", batch_size, "must be larger: mixup and cutmix need pairs of crops")
        return Training(
            epochs=self.epochs / repeats,
            batch_size=batch_size,
            base_lr=base_lr * repeats,
            min_lr=self.min_lr,
            warmup_epochs=self.warmup_epochs / repeats,
            warmup_lr=self.warmup_lr,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            betas=self.betas,
            clip_grad=self.clip_grad,
        )


def _check(good: bool, name: str, value: object, rule: str) -> None:
    if not good:
        raise UserError(f"finetune: {name} is {value}; it {rule}")

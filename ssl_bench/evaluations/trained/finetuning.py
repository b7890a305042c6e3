"""How an encoder is fine-tuned, for `finetune.py`: the loss, parameter groups and augmentation; timm's parts.

The augmentation is DeiT's (Touvron et al. 2021, arXiv:2012.12877, table 9), which MAE, BEiT and EVA-02 share.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from timm.data import auto_augment
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import create_transform
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from ssl_bench.backbones.backbone import RGB
from ssl_bench.evaluations.trained.network import Network, layer_groups
from ssl_bench.methods.method import Method
from ssl_bench.utils.distributed import gather, process
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.seeds import step_seed
from ssl_bench.views.execution import seeded
from ssl_bench.views.view import IMAGENET_MEAN, View

Mix = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


class Classifier(Method):
    """The training of a ``Network``: augmented crops, soft targets, and a learning rate for each layer.

    Args:
        network: Encoder and head.
        view: The crop.
        mix: From `mixing`.
        layer_decay: Factor on the learning rate a layer.
        ema: Decay of the moving average of the weights that is evaluated; none when left out.
    """

    paper = "none"
    category = "fine-tuning"
    uses_labels = True

    def __init__(self, network: Network, view: View, mix: Mix, layer_decay: float, ema: float | None) -> None:
        super().__init__(network.backbone)
        del self.backbone  # it is the network's
        self.network, self.view, self.mix, self.layer_decay = network, view, mix, layer_decay
        self.network.train()  # encoders come in eval mode, where no path is dropped
        self.average = None if ema is None else ModelEmaV3(network, decay=ema).requires_grad_(False)
        self.cross_entropy = SoftTargetCrossEntropy()

    @property
    def views(self) -> list[View]:
        """One crop, or several of each image."""
        return [self.view]

    @property
    def encoder(self) -> Any:
        """What is evaluated: the moving average if there is one."""
        return self.network if self.average is None else self.average.module

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Cross-entropy between the soft targets and the classifier's output for mixed crops."""
        assert self.labels is not None
        seed = 0 if self._step is None else step_seed(self.seed, self._step)
        # Crops are mixed across the joint batch, of which each process then takes its own.
        joint, labels = torch.cat([gather(view) for view in views]), gather(self.labels).repeat(len(views))
        images, targets = (_own(mixed, len(views)) for mixed in self.mix(joint, labels, seed))
        return {"loss": self.cross_entropy(self.network(images), targets)}

    def after_step(self) -> None:
        """The moving average follows."""
        if self.average is not None:
            self.average.update(self.network)

    def param_groups(self) -> list[dict[str, Any]]:
        """See `layer_groups`."""
        return layer_groups(self.network, self.network.backbone, self.training_config.weight_decay, self.layer_decay)

    def learning_rate(self, step: int, steps: int) -> float:
        """With repeated augmentation the protocol counts an epoch as so many crops as without, so of fewer images."""
        config, n = self.training_config, self.view.count
        return replace(config, epochs=config.epochs * n, warmup_epochs=config.warmup_epochs * n).lr_at(step, steps)


def _own(joint: Tensor, views: int) -> Tensor:
    """The rows of this process, of each of the views that stand one after the other in the joint batch."""
    rank, world = process()
    return joint if world == 1 else joint.unflatten(0, (views, world, -1))[:, rank].flatten(0, 1)


class RandAugment:
    """RandAugment (Cubuk et al. 2020, arXiv:1909.13719) of one image, as `timm.data.create_transform` sets it up.

    Args:
        policy: timm's description: "rand-m9-mstd0.5-inc1" is magnitude 9 with standard deviation 0.5, two operations,
            all of which grow with the magnitude.
        size: Height and width of the images, pixels; a translation is at most 0.45 of the smaller.
        interpolation: Of rotated and sheared images: "bicubic" or "bilinear".
        mean: The colour of what is rotated, sheared or moved into the image, per channel, on the scale [0, 1].

    Raises:
        UserError: timm doesn't know such a policy.
    """

    def __init__(self, policy: str, size: tuple[int, int], interpolation: str, mean: RGB = IMAGENET_MEAN) -> None:
        # timm skips some sections that it doesn't know.
        if not re.fullmatch(r"rand(-(m|n|p|mstd|mmax|inc)[\d.]+|-t(weights|3a|3aw))*", policy):
            raise UserError(f"randaugment {policy!r} is not a RandAugment string of timm, such as rand-m9-mstd0.5-inc1")
        try:
            stages = create_transform(
                size,
                is_training=True,
                auto_augment=policy,
                interpolation=interpolation,
                mean=mean,
                separate=True,
            )
        except (AssertionError, ValueError) as error:
            raise UserError(f"randaugment {policy!r}: timm cannot read it: {error or 'unknown section'}") from error
        self.transform = stages[1]  # between crop and flip, which a View does, and the tensor
        for policy_stage in stages[1].transforms:
            for op in getattr(policy_stage, "ops", ()):
                if op.aug_fn is auto_augment.posterize:
                    op.aug_fn = posterize

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) to uint8 (3, H, W); draws from the global generators."""
        changed = tv.pil_to_tensor(self.transform(tv.to_pil_image(image.cpu())))
        return changed.to(image.device)


def posterize(image: Image.Image, bits: int, **others: Any) -> Image.Image:
    """timm's operation; at magnitude 10 it keeps no bit, which leaves a black image and which Pillow 13 refuses.

    Example:
        >>> posterize(Image.new("L", (1, 1), 255), 0).getpixel((0, 0))
        0
    """
    return auto_augment.posterize(image, bits, **others) if bits > 0 else image.point(lambda value: 0)


def training_view(
    size: tuple[int, int],
    crop_min: float,
    interpolation: str,
    randaugment: str,
    color_jitter: float,
    count: int,
    mean: RGB = IMAGENET_MEAN,
) -> View:
    """The random crop of an image, flipped in half of the cases, then RandAugment or, without it, colour jitter.

    Args:
        size: Height and width, pixels.
        crop_min: Smallest share of the image area.
        interpolation: Of the crop and of RandAugment.
        randaugment: timm's description; none when empty.
        color_jitter: Strength for brightness, contrast and saturation; as in timm, RandAugment turns it off.
        count: Crops of each image.
        mean: Of the encoder's input, see `RandAugment`; the crop itself is normalised as the backbone wants it
            (`Method.drawn_views`).
    """
    augment = RandAugment(randaugment, size, interpolation, mean) if randaugment else None
    jitter = 0.0 if randaugment else color_jitter
    return View(
        size,
        scale=(crop_min, 1.0),
        interpolation=interpolation,
        flip=0.5,
        jitter=(jitter, jitter, jitter, 0.0),
        jitter_p=float(jitter > 0),
        count=count,
        augment=augment,
    )


def mixing(
    classes: int,
    mixup: float,
    cutmix: float,
    mixup_p: float,
    switch_p: float,
    smoothing: float,
    erasing: float,
    erasing_mode: str,
) -> Mix:
    """What is done to a batch of normalised crops: random erasing, then mixup or cutmix with the batch reversed.

    Zhong et al. 2020 (arXiv:1708.04896), Zhang et al. 2018 (arXiv:1710.09412), Yun et al. 2019 (arXiv:1905.04899). One
    draw decides for the whole batch (timm's mode "batch"). Label smoothing is part of the soft targets.

    Args:
        classes: Number of classes.
        mixup: Alpha of mixup's beta distribution; 0 is off.
        cutmix: Alpha of cutmix's; 0 is off.
        mixup_p: Probability that a batch is mixed.
        switch_p: Probability of cutmix where both are on.
        smoothing: Share of the target that is spread over all classes.
        erasing: Probability that a rectangle of an image is erased.
        erasing_mode: "pixel" (noise), "rand" (one colour) or "const" (zeros).

    Returns:
        Images (B, 3, H, W), changed in place, labels (B,) int64 and a seed -> images and targets (B, C) float32.

    Example:
        >>> mixing(4, 0.0, 0.0, 1.0, 0.5, 0.1, 0.0, "pixel")(torch.zeros(1, 3, 8, 8), torch.tensor([2]), 0)[1]
        tensor([[0.0250, 0.0250, 0.9250, 0.0250]])
    """
    erase = RandomErasing(erasing, mode=erasing_mode)
    mix = Mixup(mixup, cutmix, None, mixup_p, switch_p, "batch", label_smoothing=smoothing, num_classes=classes)

    def change(images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        with seeded(seed):  # on a GPU the noise comes from its own generator, which each step seeds
            if erasing:
                erase.device = images.device
                images = erase(images)
            # timm mixes pairs; only the few images on which a run's cost is measured can be odd.
            if (mixup or cutmix) and len(images) % 2 == 0:
                return mix(images, labels)
        return images, mixup_target(labels, classes, 1.0, smoothing)

    return change


def total(spent: list[dict[str, Any]]) -> dict[str, Any]:
    """What several trainings took together; what cannot be added is that of the last.

    Example:
        >>> zero = dict.fromkeys(("images_seen", "patches_encoded", "patches_encoded_without_gradient", "flops"), 0)
        >>> runs = [{**zero, "steps": n, "wall_seconds": 1.0, "peak_memory_bytes": 9 - n} for n in (2, 3)]
        >>> {key: value for key, value in total(runs).items() if value}
        {'steps': 5, 'wall_seconds': 2.0, 'peak_memory_bytes': 7, 'runs': 2}
    """
    keys = ("steps", "images_seen", "patches_encoded", "patches_encoded_without_gradient", "flops", "wall_seconds")
    added = {key: sum(cost[key] for cost in spent) for key in keys}
    peak = max(cost["peak_memory_bytes"] for cost in spent)
    return {**spent[-1], **added, "peak_memory_bytes": peak, "runs": len(spent)}

"""What every suite compares with: raw pixels, the untrained backbone, and supervised training."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones import build_backbone
from ssl_bench.backbones.backbone import RGB, Backbone
from ssl_bench.methods.method import Method
from ssl_bench.nn.optimizers import Training
from ssl_bench.utils.bounds import Area, Share, Width
from ssl_bench.views.view import View, random_resized_crop


class Untrained(Method):
    """Baseline: the backbone at its initial weights. What a method learns is its distance from here.

    Args:
        backbone: The encoder.
        mean: Of the images that the method compared with it sees, where they are not ImageNet's; with ``std``.
        std: Per channel, on the scale [0, 1].
    """

    paper = "none"
    category = "baseline"
    trains = False

    def __init__(self, backbone: Backbone, *, mean: RGB | None = None, std: RGB | None = None) -> None:
        if mean and std and "mean" not in vars(backbone):
            backbone.mean, backbone.std = mean, std
        super().__init__(backbone)


class RawPixels(Untrained):
    """Baseline: the image itself, at no more than 32 x 32 pixels."""

    @property
    def encoder(self) -> nn.Module:
        """Pixels at the backbone's image size."""
        return build_backbone("pixels_{}x{}".format(*self.backbone.image_size))


class Supervised(Method):
    """Baseline: cross-entropy on the labels, random crops and flips. Says what the backbone can learn at this budget.

    Args:
        backbone: The encoder.
        num_classes: Classes of the data; set from the data for every method that uses labels.
        label_smoothing: Label smoothing (DeiT: 0.1).
        crop_min: Smallest area of the crop.
    """

    paper = "Touvron et al. 2021, arXiv 2012.12877 (DeiT)"
    category = "baseline"
    uses_labels = True
    defaults = Training(epochs=300, batch_size=1024, base_lr=2.5e-4, warmup_epochs=5, weight_decay=0.05)
    deviations = (
        "no mixup, cutmix, RandAugment, erasing, repeated augmentation or EMA: a baseline, not DeiT",
        "the classifier reads the mean patch token; DeiT's reads the cls token",
        "positions and initial weights are those of the recipe's backbone; DeiT's are learned and truncated normal",
    )

    def __init__(
        self, backbone: Backbone, *, num_classes: Width, label_smoothing: Share = 0.1, crop_min: Area = 0.2
    ) -> None:
        super().__init__(backbone)
        self.label_smoothing, self.crop_min = label_smoothing, crop_min
        self.head = nn.Linear(backbone.embed_dim, num_classes)

    @property
    def views(self) -> list[View]:
        """One crop, flipped at random."""
        return [random_resized_crop(self.backbone.image_size, self.crop_min)]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of a linear classifier on the mean patch token."""
        (images,) = views
        logits = self.head(self.backbone(images).patches.mean(dim=1)).float()
        assert self.labels is not None
        loss = F.cross_entropy(logits, self.labels, label_smoothing=self.label_smoothing)
        return {"loss": loss, "top1": 100 * (logits.argmax(1) == self.labels).float().mean()}

"""SimMIM: a Simple Framework for Masked Image Modeling. Xie et al., CVPR 2022, arXiv 2111.09886."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.method import Method
from ssl_bench.nn.masking import random_masking
from ssl_bench.nn.optimizers import Training, no_decay_on_vectors
from ssl_bench.utils.bounds import Area, OpenShare, Pixels, Share
from ssl_bench.utils.errors import UserError
from ssl_bench.views.evaluation import denormalize, normalize
from ssl_bench.views.view import View, random_resized_crop


class SimMIM(Method):
    """See an image with large squares masked, and regress their pixels with one linear layer.

    loss = mean over the masked pixels of |prediction - pixel|, all three channels

    Args:
        backbone: The encoder.
        mask_patch: Side of the squares that are masked, pixels (section 3.2; ``config.py``).
        mask_ratio: Part of them that is masked, rounded up to whole squares (``data_simmim.py``).
        lr_drops: Parts of the training after which the learning rate is a tenth: epoch 700 of 800 (the authors'
            configurations of 800 epochs).
        crop_min: Smallest area of the crop (``data_simmim.py``).

    Raises:
        UserError: The squares are no whole cells of the backbone, or don't divide the image.
    """

    paper = "Xie et al. 2021, arXiv 2111.09886"
    category = "reconstruction"
    # configs/vit_base__800ep. Their rates are for a batch of 512, ours for 256, so base_lr is half of 1e-4; the warm-up
    # starts at 5e-7 of 512, which is absolute here.
    defaults = Training(
        epochs=800,
        batch_size=2048,
        base_lr=5e-5,
        warmup_epochs=10,
        warmup_lr=2e-6,
        weight_decay=0.05,
        clip_grad=5.0,
    )
    needs = ("mask",)
    backbone_options = {
        "pos_embed": "none",
        "relative_positions": "shared",
        "init": "beit",
        "layer_scale": 0.1,
        "drop_path": 0.1,
        "mask_token": True,
    }
    deviations = (
        "the authors state no batch for their ViT: it is that of their Swin, 2048",
        "the keys of a ViT's attention have a bias, which softmax cancels; the authors' have none",
        "mixed precision, where a recipe has it, is bf16; the authors' is fp16 with a loss scaler",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_patch: Pixels = 32,
        mask_ratio: OpenShare = 0.6,
        lr_drops: tuple[Share, ...] = (0.875,),
        crop_min: Area = 0.67,
    ) -> None:
        super().__init__(backbone)
        self.mask_ratio, self.lr_drops, self.crop_min = mask_ratio, lr_drops, crop_min
        height, width = backbone.image_size
        if mask_patch < 1 or mask_patch % backbone.cell or height % mask_patch or width % mask_patch:
            raise UserError(
                f"mask_patch is {mask_patch}; it must be a multiple of the {backbone.cell} pixels of a cell of "
                f"{backbone.name}, and divide its images of {height} x {width}"
            )
        self.cells = mask_patch // backbone.cell  # of a square's side
        self.squares = (height // mask_patch, width // mask_patch)
        self.decoder = nn.Sequential(
            nn.Conv2d(backbone.embed_dim, backbone.cell**2 * 3, kernel_size=1), nn.PixelShuffle(backbone.cell)
        )

    @property
    def views(self) -> list[View]:
        """One crop, flipped at random; no colour augmentation (``data_simmim.py``)."""
        return [random_resized_crop(self.backbone.image_size, self.crop_min, interpolation="bilinear")]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Absolute error of the masked pixels (section 3.4)."""
        (images,) = views
        mask = self.masks(len(images))
        return {"loss": masked_l1(self.reconstruct(images, mask).float(), images, self.of_pixels(mask))}

    def masks(self, batch: int) -> Tensor:
        """(B, cells) bool: as many squares in each image."""
        squares = random_masking(self.uniform(batch, self.squares[0] * self.squares[1]), self.mask_ratio).mask
        return enlarged(squares.unflatten(1, self.squares), self.cells).flatten(1)

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """(B, 3, H, W) and the cells (B, L) that are masked in it -> (B, 3, H, W)."""
        patches = self.backbone(images, mask=mask).patches
        return self.decoder(patches.transpose(1, 2).unflatten(2, self.backbone.mask_grid))

    def of_pixels(self, mask: Tensor) -> Tensor:
        """A mask of cells (B, L) as one of pixels (B, 1, H, W)."""
        return enlarged(mask.unflatten(1, self.backbone.mask_grid), self.backbone.cell)[:, None]

    def learning_rate(self, step: int, steps: int) -> float:
        """Warm-up, then constant, then drops to a tenth (``lr_scheduler.py``)."""
        config = self.training_config
        warmup = min(config.warmup_epochs / config.epochs, 1.0) if config.epochs else 0.0
        return multi_step(step, steps, config.lr, warmup, config.warmup_lr, self.lr_drops)

    def param_groups(self) -> list[dict[str, Any]]:
        """No weight decay on vectors, positions, cls token, and of a Swin alone the mask token (``simmim.py``)."""
        spared = ("cls_token", "pos_embed") if self.backbone.has_cls else ("mask_token",)
        return no_decay_on_vectors(self.named_parameters(), spared)

    def show(self, images: Tensor) -> dict[str, Tensor]:
        """What is masked and what is predicted there."""
        mask = self.masks(len(images))
        prediction = self.reconstruct(normalize(images, self.drawn_views[0]), mask)
        hidden = self.of_pixels(mask).float()
        predicted = torch.lerp(images, denormalize(prediction, self.drawn_views[0]), hidden)
        return {"masked": images * (1 - hidden) + 0.5 * hidden, "predicted": predicted}


def enlarged(mask: Tensor, factor: int) -> Tensor:
    """(B, rows, columns) -> (B, rows * factor, columns * factor), each entry a square."""
    return mask.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def masked_l1(prediction: Tensor, images: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error of the masked pixels (``simmim.py``); images of a batch have equally many.

    Args:
        prediction: (B, 3, H, W).
        images: (B, 3, H, W).
        mask: (B, 1, H, W) bool, True = masked.

    Example:
        >>> image, mask = torch.arange(48.0).view(1, 3, 4, 4) / 10, torch.tensor([[[[False, True], [True, False]]]])
        >>> round(masked_l1(torch.ones(1, 3, 4, 4), image, enlarged(mask[0], 2)[None]).item(), 5)
        1.55833
    """
    return (F.l1_loss(prediction, images, reduction="none") * mask).sum() / (mask.sum() + 1e-5) / 3


def multi_step(step: int, steps: int, peak: float, warmup: float, start: float, drops: Sequence[float]) -> float:
    """Learning rate of one step: linear from ``start`` to ``peak``, which then falls to a tenth at each of ``drops``.

    Args:
        step: Steps done before this one. The authors ask their schedule after each step with that step's number, so the
            second step has the first one's rate again.
        steps: Of the whole training.
        peak: Highest rate.
        warmup: Part of the training in which it rises.
        start: Rate of the first step.
        drops: Parts of the training.

    Example:
        >>> [round(multi_step(i, 80, 1e-3, 0.1, 1e-4, (0.5, 0.75)), 7) for i in (0, 1, 5, 9, 40, 41, 61)]
        [0.0001, 0.0001, 0.00055, 0.001, 0.001, 0.0001, 1e-05]
    """
    at = max(0, step - 1) / steps
    if at < warmup:
        return start + (peak - start) * at / warmup
    return peak * 0.1 ** sum(at >= drop for drop in drops)

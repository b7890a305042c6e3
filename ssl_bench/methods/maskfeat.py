"""MaskFeat: Masked Feature Prediction for Self-Supervised Visual Pre-Training. Wei et al., CVPR 2022, 2112.09133."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.method import Method
from ssl_bench.nn.hog import BINS, by_patch, draw, from_patches, histograms
from ssl_bench.nn.masking import block_masking, masked_mean
from ssl_bench.nn.optimizers import Training, no_decay_on_vectors
from ssl_bench.utils.bounds import Area, Count, OpenShare, Pixels
from ssl_bench.utils.errors import UserError
from ssl_bench.views.evaluation import normalize
from ssl_bench.views.view import View, random_resized_crop


class MaskFeat(Method):
    """Mask blocks of patches and predict histograms of oriented gradients there.

    loss = mean over masked patches of |head(patch) - HOG|^2 / values of a patch

    Args:
        backbone: The encoder.
        mask_ratio: Part of the patches that is masked (section 5.2).
        min_block: Smallest block, patches; 15 is for the paper's 14 x 14 (mmpretrain's configuration).
        cell: Side of a cell of the histograms, pixels (8: 2 x 2 cells for a patch of 16).
        crop_min: Smallest area of the crop (appendix).
    """

    paper = "Wei et al. 2021, arXiv 2112.09133"
    category = "feature regression"
    defaults = Training(  # mmpretrain's configuration of the ViT-B: 1.6e-3 at batch 2048
        epochs=300,
        batch_size=2048,
        base_lr=2e-4,
        min_lr=1e-6,
        warmup_epochs=30,
        weight_decay=0.05,
        clip_grad=0.02,
    )
    needs = ("mask",)
    backbone_options = {"pos_embed": "learned", "init": "timm", "mask_token": True}
    deviations = (
        "written from mmpretrain's description of the method, whose values for the ViT-B are the defaults",
        "mixed precision, where a recipe has it, is bf16; mmpretrain's is fp16 with a loss scaler",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: OpenShare = 0.4,
        min_block: Count = 15,
        cell: Pixels = 8,
        crop_min: Area = 0.5,
    ) -> None:
        super().__init__(backbone)
        rows, columns = backbone.mask_grid
        self.n_masked = round(mask_ratio * rows * columns)
        if not 1 <= min_block <= self.n_masked:
            raise UserError(
                f"min_block is {min_block}, more than the {self.n_masked} patches to mask of {rows} x {columns} "
                f"(mask_ratio {mask_ratio:g}); about a fifth of them is the paper's share: {max(1, self.n_masked // 5)}"
            )
        if cell < 1 or backbone.cell % cell:
            raise UserError(f"cell is {cell}; it must divide the {backbone.cell} pixels of a patch's side")
        self.min_block, self.cell, self.crop_min = min_block, cell, crop_min
        self.cells = backbone.cell // cell  # of a patch's side
        self.head = nn.Linear(backbone.embed_dim, 3 * BINS * self.cells**2)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @property
    def views(self) -> list[View]:
        """One crop, flipped at random; no colour augmentation."""
        return [random_resized_crop(self.backbone.image_size, self.crop_min)]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Squared error of the masked patches (section 3.1)."""
        (images,) = views
        mask = self.masks(len(images))
        target = by_patch(histograms(images, self.cell), self.cells)
        prediction = self.head(self.backbone(images, mask=mask).patches)
        return {"loss": feature_loss(prediction, target, mask)}

    def masks(self, batch: int) -> Tensor:
        """(B, L) bool, BEiT's blocks of masked patches."""
        wanted = torch.full((batch,), float(self.n_masked), device=self.device)
        return block_masking(wanted, self.backbone.mask_grid, self.min_block, partial(self.uniform, batch)).flatten(1)

    def param_groups(self) -> list[dict[str, Any]]:
        """No weight decay on vectors and the mask token."""
        return no_decay_on_vectors(self.named_parameters(), spared=("mask_token",))

    def show(self, images: Tensor) -> dict[str, Tensor]:
        """What is masked, the histograms of the image, and those predicted in the masked places."""
        x, grid = normalize(images, self.drawn_views[0]), self.backbone.mask_grid
        mask = self.masks(len(images))
        target = by_patch(histograms(x, self.cell), self.cells)
        predicted = torch.where(mask[..., None], self.head(self.backbone(x, mask=mask).patches).float(), target)
        hidden = F.interpolate(mask.view(-1, 1, *grid).float(), images.shape[-2:])
        shown = [draw(from_patches(values, grid, self.cells), self.cell) for values in (target, predicted)]
        return {
            "masked": torch.lerp(images, torch.full_like(images, 0.5), hidden),
            "HOG": shown[0],
            "predicted": shown[1],
        }


def feature_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the masked patches of the joint batch.

    Args:
        prediction: (B, L, K).
        target: (B, L, K) float32.
        mask: (B, L) bool, True = masked; the visible patches don't count.

    Example:
        >>> prediction, target = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]), torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])
        >>> feature_loss(prediction, target, torch.tensor([[True, False]]))
        tensor(2.5000)
    """
    return masked_mean((prediction.float() - target).square().mean(dim=-1), mask)

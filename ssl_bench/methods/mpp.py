"""Masked patch prediction, the self-supervision of An Image Is Worth 16x16 Words. Dosovitskiy et al., ICLR 2021,
arXiv 2010.11929, appendix B.1.2."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.method import Method
from ssl_bench.nn.optimizers import Training
from ssl_bench.nn.patches import patchify, unpatchify
from ssl_bench.utils.bounds import Area, OpenShare, Share
from ssl_bench.utils.errors import UserError
from ssl_bench.views.evaluation import denormalize, normalize
from ssl_bench.views.view import View, random_resized_crop

CELLS = {"mean_color": 1, "color_grid": 4}  # cells of a patch's side whose colours are predicted


class MPP(Method):
    """Corrupt half of the patch embeddings and predict what the corrupted patches look like.

    loss = mean over corrupted patches of CE(prediction, mean colour in 3 bits a channel)

    Args:
        backbone: The encoder.
        target: What is predicted of a patch: ``mean_color`` (512 classes), ``color_grid`` (4 x 4 colours of 512
            classes) or ``pixels`` (all values, by squared error). The paper reports the first.
        mask_ratio: Part of the patches that is corrupted.
        mask_share: Part of those whose embedding becomes the mask token.
        swap_share: Part of those whose embedding becomes that of another patch of the image; the rest stay.
        crop_min: Smallest area of the crop. The paper names no augmentation.
    """

    paper = "Dosovitskiy et al. 2021, arXiv 2010.11929, appendix B.1.2"
    category = "token prediction"
    defaults = (
        Training(  # rate, batch and warm-up of B.1.2 on JFT; 100,000 steps, where its gains level off, on ImageNet
            epochs=320, batch_size=4096, base_lr=1.25e-5, warmup_epochs=32, weight_decay=0.1, clip_grad=1.0
        )
    )
    needs = ("mask", "swap")
    backbone_options = {"pos_embed": "learned", "init": "timm", "mask_token": True}
    input_statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # ViT's
    deviations = (
        "the augmentation (a random resized crop and a flip), weight decay (0.1) and gradient clipping (1) are "
        "ours, because the paper states none",
        "the optimiser is AdamW; the paper says Adam",
        "another patch comes from the same image; the paper does not say from where",
        "the head's and mask token's initial weights are normal of std 0.02, because the paper states none",
        "the recipes train on the suite's images; the paper on JFT-300M",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        target: Literal["mean_color", "color_grid", "pixels"] = "mean_color",
        mask_ratio: OpenShare = 0.5,
        mask_share: Share = 0.8,
        swap_share: Share = 0.1,
        crop_min: Area = 0.2,
    ) -> None:
        super().__init__(backbone)
        patch = backbone.cell
        if target == "color_grid" and patch % CELLS[target]:
            raise UserError(
                f"target color_grid cuts a patch into 4 x 4 cells, which patches of {patch} pixels don't allow"
            )
        self.target, self.mask_ratio, self.crop_min = target, mask_ratio, crop_min
        self.mask_share, self.swap_share = mask_share, swap_share
        self.head = nn.Linear(backbone.embed_dim, 3 * patch**2 if target == "pixels" else 512 * CELLS[target] ** 2)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @property
    def views(self) -> list[View]:
        """One crop, flipped at random."""
        return [random_resized_crop(self.backbone.image_size, self.crop_min)]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Prediction error over the corrupted patches: masked, swapped and unchanged alike."""
        (images,) = views
        chosen, mask, swap = self.corruption(len(images))
        patches = self.backbone(images, mask=mask, swap=swap).patches
        at = chosen[..., None]
        prediction = self.head(patches.gather(1, at.expand(-1, -1, patches.shape[-1]))).float()
        pixels = denormalize(images.float(), self.drawn_views[0])
        if self.target == "pixels":
            target = patchify(pixels, self.backbone.cell)
            return {"loss": F.mse_loss(prediction, target.gather(1, at.expand_as(prediction)))}
        classes = color_classes(pixels, self.backbone.cell, CELLS[self.target])
        classes = classes.gather(1, at.expand(-1, -1, classes.shape[-1])).flatten()
        logits = prediction.view(-1, 512)
        accuracy = (logits.detach().argmax(dim=1) == classes).float().mean()
        return {"loss": F.cross_entropy(logits, classes), "accuracy": accuracy}

    def corruption(self, batch: int) -> Corruption:
        """A draw for each image."""
        n_patches = self.backbone.mask_grid[0] * self.backbone.mask_grid[1]
        noise, kind, other = self.uniform(batch, n_patches, 3).unbind(-1)
        return corrupt(noise, kind, other, self.mask_ratio, self.mask_share, self.swap_share)

    def show(self, images: Tensor) -> dict[str, Tensor]:
        """The predicted colours in the corrupted patches, and what stood there: mask tokens in grey, other patches."""
        chosen, mask, swap = self.corruption(len(images))
        grid, patch = self.backbone.mask_grid, self.backbone.cell
        output = self.head(self.backbone(normalize(images, self.drawn_views[0]), mask=mask, swap=swap).patches).float()
        if self.target == "pixels":
            predicted = unpatchify(output, patch, grid)
        else:
            classes = output.unflatten(2, (-1, 512)).argmax(dim=-1)
            levels = torch.stack([classes // 64, classes // 8 % 8, classes % 8], dim=-1)
            colors = unpatchify((levels + 0.5).flatten(2) / 8, CELLS[self.target], grid)
            predicted = F.interpolate(colors, images.shape[-2:])
        seen = patchify(images, patch)
        seen = seen.gather(1, swap[..., None].expand_as(seen)).masked_fill(mask[..., None], 0.5)
        at = torch.zeros_like(mask).scatter(1, chosen, True).view(len(images), 1, *grid)
        hidden = F.interpolate(at.float(), images.shape[-2:])
        return {"corrupted": unpatchify(seen, patch, grid), "predicted": torch.lerp(images, predicted, hidden)}


class Corruption(NamedTuple):
    """Which patches are predicted, and what stands in their places."""

    chosen: Tensor  # (B, K) int64, the corrupted patches
    mask: Tensor  # (B, L) bool, True = the mask token
    swap: Tensor  # (B, L) int64, the patch whose embedding stands in each place


def corrupt(
    noise: Tensor, kind: Tensor, other: Tensor, mask_ratio: float, mask_share: float, swap_share: float
) -> Corruption:
    """Corrupt ceil(mask_ratio L) patches of each image, BERT's way: one draw says which of the three kinds.

    Args:
        noise: (B, L) U(0, 1); the patches with the smallest are chosen.
        kind: (B, L) U(0, 1); below ``mask_share`` mask token, in the next ``swap_share`` another patch, else as is.
        other: (B, L) U(0, 1); which of the other L - 1 patches of the image.
        mask_ratio: Part of the patches that is corrupted.
        mask_share: See ``kind``.
        swap_share: See ``kind``.

    Example:
        >>> noise, kind = torch.tensor([[0.1, 0.9, 0.2, 0.3]]), torch.tensor([[0.85, 0.0, 0.5, 0.95]])
        >>> corruption = corrupt(noise, kind, torch.full((1, 4), 0.99), 0.75, 0.8, 0.1)
        >>> [part.int().tolist() for part in corruption]
        [[[0, 2, 3]], [[0, 0, 1, 0]], [[3, 1, 2, 3]]]
    """
    n_patches = noise.shape[1]
    order = noise.argsort(dim=1)
    chosen = order[:, : math.ceil(n_patches * mask_ratio)]
    corrupted = torch.zeros_like(noise, dtype=torch.bool).scatter(1, chosen, True)
    own = torch.arange(n_patches, device=noise.device)
    another = (other * (n_patches - 1)).long().clamp(max=n_patches - 2)  # u * n can round up to n in float32
    another = another + (another >= own)
    swapped = corrupted & (kind >= mask_share) & (kind < mask_share + swap_share)
    return Corruption(chosen, corrupted & (kind < mask_share), torch.where(swapped, another, own))


def color_classes(pixels: Tensor, patch_size: int, cells: int = 1) -> Tensor:
    """The mean colours of each patch, in 3 bits a channel: class 64 R + 8 G + B with R = floor(8 mean), 7 at most.

    Args:
        pixels: (B, 3, H, W) float32 in [0, 1], not normalised.
        patch_size: Side of a patch, pixels.
        cells: A patch is cut into cells x cells parts, row by row; their side must be whole.

    Returns:
        (B, L, cells * cells) int64.

    Example:
        >>> pixels = torch.tensor([0.0875, 0.3, 1.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
        >>> color_classes(pixels, 2)
        tensor([[[23]]])
    """
    mean = F.avg_pool2d(pixels, patch_size // cells)
    level = (8 * mean).floor().clamp(0, 7).long()
    classes = 64 * level[:, 0] + 8 * level[:, 1] + level[:, 2]
    rows, columns = (side // cells for side in classes.shape[1:])
    return classes.reshape(-1, rows, cells, columns, cells).transpose(2, 3).reshape(-1, rows * columns, cells**2)

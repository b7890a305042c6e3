"""The pre-training of Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles. Ryali et al., ICML 2023,
arXiv 2306.00989."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_bench.backbones.backbone import Backbone, Tokens
from ssl_bench.methods.method import Method
from ssl_bench.nn.attention import by_input
from ssl_bench.nn.masking import random_masking
from ssl_bench.nn.optimizers import Training, no_decay_on_vectors
from ssl_bench.nn.patches import patchify, reconstruction_loss, unpatchify, with_statistics_of
from ssl_bench.utils.bounds import Area, Depth, OpenShare, Width, check_multiple
from ssl_bench.views.evaluation import denormalize, normalize
from ssl_bench.views.view import View, random_resized_crop

SIDE = 2  # tokens of a unit's side after the last stage, which pools no queries in pre-training (``hiera_mae.py``)


class HieraMAE(Method):
    """Encode two fifths of the mask units, fuse several stages' tokens, decode all units, regress the masked ones.

    loss = mean over masked patches of |prediction - normalised pixels|^2 / (3 p^2), four patches to a unit

    Args:
        backbone: The encoder.
        mask_ratio: Part of the mask units that is masked (``hiera_mae.py``).
        decoder_dim: Width of the decoder (``hiera_mae.py``).
        decoder_depth: Blocks of the decoder (``hiera_mae.py``).
        decoder_heads: Attention heads of the decoder (``hiera_mae.py``).
        crop_min: Smallest area of the crop (table 14).
    """

    paper = "Ryali et al. 2023, arXiv 2306.00989"
    category = "reconstruction"
    defaults = Training(  # table 14: learning rate 8e-4 at batch 4096
        epochs=1600, batch_size=4096, base_lr=5e-5, warmup_epochs=40, weight_decay=0.05, betas=(0.9, 0.95)
    )
    needs = ("keep", "units")
    backbone_options = {"init": "mae"}
    deviations = (
        "the authors released no training script: what the paper's table 14 leaves open is as in MAE's",
        "mixed precision, where a recipe has it, is bf16",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: OpenShare = 0.6,
        decoder_dim: Width = 512,
        decoder_depth: Depth = 8,
        decoder_heads: Depth = 16,
        crop_min: Area = 0.2,
    ) -> None:
        super().__init__(backbone)
        check_multiple("decoder_dim", decoder_dim, of=decoder_heads, named="decoder_heads")
        self.mask_ratio, self.crop_min = mask_ratio, crop_min
        self.patch_size = backbone.cell // SIDE
        rows, columns = backbone.mask_grid
        self.grid = (rows * SIDE, columns * SIDE)
        self.fusion = Fusion([stage.dim for stage in backbone.stages])
        self.decoder_embed = nn.Linear(backbone.embed_dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], decoder_dim))
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_dim, decoder_heads, mlp_ratio=4, qkv_bias=True, norm_layer=norm) for _ in range(decoder_depth)
        )
        by_input(self.decoder_blocks)
        self.decoder_norm = norm(decoder_dim)
        self.decoder_pred = nn.Linear(decoder_dim, self.patch_size**2 * 3)
        for name, module in self.named_modules():
            if name.startswith("decoder_") and isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for token in (self.mask_token, self.decoder_pos_embed):
            nn.init.trunc_normal_(token, std=0.02)

    @property
    def views(self) -> list[View]:
        """One crop, flipped at random; no colour augmentation (table 14)."""
        return [random_resized_crop(self.backbone.image_size, self.crop_min)]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Reconstruction error over the patches of the masked units."""
        (images,) = views
        prediction, mask = self.reconstruct(images)
        target = patchify(images, self.patch_size, channels_first=True)
        return {"loss": reconstruction_loss(prediction.float(), target, mask, norm_pix=True)}

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mask, encode, fuse, decode: (B, 3, H, W) -> predicted patches (B, L, p * p * 3) and their mask (B, L)."""
        rows, columns = self.backbone.mask_grid
        keep, _, masked = random_masking(self.uniform(len(images), rows * columns), self.mask_ratio)
        keep = keep.sort(dim=1).values
        tokens = self.fusion(self.backbone.unit_tokens(images, keep), self.backbone.final_norm)
        return self.decode(tokens.patches, keep), to_raster(masked[:, :, None].expand(-1, -1, SIDE**2), (rows, columns))

    def decode(self, visible: Tensor, keep: Tensor) -> Tensor:
        """Predict every patch from the visible units.

        Args:
            visible: (B, K * 4, D), unit by unit.
            keep: (B, K) int64, rising: which units they are.

        Returns:
            (B, L, p * p * 3) in raster order.
        """
        x = self.decoder_embed(visible).unflatten(1, (-1, SIDE**2))
        rows, columns = self.backbone.mask_grid
        units = self.mask_token.to(x.dtype)[:, None].expand(len(x), rows * columns, SIDE**2, -1)
        units = units.scatter(1, keep[:, :, None, None].expand_as(x), x)
        x = to_raster(units, (rows, columns)) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))

    def param_groups(self) -> list[dict[str, Any]]:
        """No weight decay on vectors and the encoder's positions (``hiera.py``, ``no_weight_decay``)."""
        return no_decay_on_vectors(self.named_parameters(), spared=("backbone.pos_embed",))

    def show(self, images: Tensor) -> dict[str, Tensor]:
        """What is masked and what is predicted there, with the mean and variance of each patch given back."""
        x = normalize(images, self.drawn_views[0])
        prediction, mask = self.reconstruct(x)
        prediction = with_statistics_of(prediction, patchify(x, self.patch_size, channels_first=True))
        hidden = unpatchify(mask[..., None].expand_as(prediction).float(), self.patch_size, self.grid)
        predicted = unpatchify(prediction, self.patch_size, self.grid, channels_first=True)
        predicted = denormalize(predicted, self.drawn_views[0])
        return {"masked": images * (1 - hidden) + 0.5 * hidden, "predicted": torch.lerp(images, predicted, hidden)}


class Fusion(nn.Module):
    """Multi-scale fusion: the sum of stages, brought to the resolution and width of the last within units.

    The last but one has the last one's resolution in pre-training and is left out (``hiera_mae.py``).

    Args:
        dims: Channels of each stage.
    """

    def __init__(self, dims: list[int]) -> None:
        super().__init__()
        sides = [2 ** (len(dims) - 2 - stage) for stage in range(len(dims) - 2)]  # tokens for one of the last stage
        self.heads = nn.ModuleList(nn.Conv2d(dim, dims[-1], n, n) for dim, n in zip(dims, sides, strict=False))

    def forward(self, stages: list[Tensor], norm: Callable[[Tensor], Tensor]) -> Tokens:
        """Fuse.

        Args:
            stages: (B, K, rows, columns, C) each, as of ``Backbone.unit_tokens``.
            norm: The encoder's final norm.

        Returns:
            Through the norm: (B, K * 4, D), unit by unit, and their mean.
        """
        last = stages[-1]
        for head, x in zip(self.heads, stages, strict=False):
            fused = head(x.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            last = last + fused.unflatten(0, x.shape[:2])
        patches = norm(last.flatten(1, 3))
        return Tokens(patches.mean(dim=1), patches)


def to_raster(units: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens unit by unit -> in raster order of the image.

    Args:
        units: (B, rows * columns, 4, ...).
        grid: Rows and columns of units.

    Returns:
        (B, rows * columns * 4, ...).

    Example:
        >>> to_raster(torch.arange(8).view(1, 2, 4), (1, 2)).tolist()
        [[0, 1, 4, 5, 2, 3, 6, 7]]
    """
    x = units.unflatten(2, (SIDE, SIDE)).unflatten(1, grid)  # (B, rows, columns, 2, 2, ...)
    return x.transpose(2, 3).flatten(1, 4)

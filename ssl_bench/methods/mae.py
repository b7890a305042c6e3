"""Masked Autoencoders Are Scalable Vision Learners. He et al., CVPR 2022, arXiv 2111.06377."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.backbones.positions import sincos_position_embedding
from ssl_bench.methods.method import Method
from ssl_bench.nn.attention import by_input
from ssl_bench.nn.block import Block
from ssl_bench.nn.masking import random_masking
from ssl_bench.nn.optimizers import Training
from ssl_bench.nn.patches import patchify, reconstruction_loss, unpatchify, with_statistics_of
from ssl_bench.utils.bounds import Area, Depth, OpenShare, Width, check_multiple
from ssl_bench.views.evaluation import denormalize, normalize
from ssl_bench.views.view import View, random_resized_crop


class MAE(Method):
    """Encode a random quarter of the patches, decode all of them, regress the pixels of the masked ones.

    loss = mean over masked patches of |prediction - normalised pixels|^2 / (3 p^2)

    Args:
        backbone: The encoder.
        mask_ratio: Part of the patches that is masked (section 3; figure 5).
        norm_pix: Normalise each target patch by its own mean and variance (table 1d; all released checkpoints).
        decoder_dim: Width of the decoder (table 1b).
        decoder_depth: Blocks of the decoder (table 1a).
        decoder_heads: Attention heads of the decoder (``models_mae.py``).
        crop_min: Smallest area of the crop (table 8).
    """

    paper = "He et al. 2022, arXiv 2111.06377"
    category = "reconstruction"
    defaults = Training(  # table 8, 800 epochs
        epochs=800, batch_size=4096, base_lr=1.5e-4, warmup_epochs=40, weight_decay=0.05, betas=(0.9, 0.95)
    )
    needs = ("keep", "cls")
    backbone_options = {"pos_embed": "sincos_xy", "init": "mae"}
    deviations = ("mixed precision, where a recipe has it, is bf16; the authors' is fp16 with a loss scaler",)

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: OpenShare = 0.75,
        norm_pix: bool = True,
        decoder_dim: Width = 512,
        decoder_depth: Depth = 8,
        decoder_heads: Depth = 16,
        crop_min: Area = 0.2,
    ) -> None:
        super().__init__(backbone)
        check_multiple("decoder_dim", decoder_dim, of=4)  # of its positions: sine and cosine, of columns and rows
        check_multiple("decoder_dim", decoder_dim, of=decoder_heads, named="decoder_heads")
        self.mask_ratio, self.norm_pix, self.crop_min = mask_ratio, norm_pix, crop_min
        self.patch_size = backbone.cell
        self.decoder_embed = nn.Linear(backbone.embed_dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        table = sincos_position_embedding(decoder_dim, backbone.mask_grid, first="x")
        self.decoder_pos_embed = nn.Parameter(table[None], requires_grad=False)
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.decoder_blocks = nn.Sequential(
            *(Block(decoder_dim, decoder_heads, qkv_bias=True, norm_layer=norm) for _ in range(decoder_depth))
        )
        by_input(self.decoder_blocks)
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_dim, self.patch_size**2 * 3)
        for name, module in self.named_modules():
            if name.startswith("decoder") and isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    @property
    def views(self) -> list[View]:
        """One crop, flipped at random; no colour augmentation (table 8)."""
        return [random_resized_crop(self.backbone.image_size, self.crop_min)]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Reconstruction error over the masked patches."""
        (images,) = views
        prediction, at = self.reconstruct(images)
        target = patchify(images, self.patch_size).gather(1, at)
        return {"loss": reconstruction_loss(prediction.float(), target, None, self.norm_pix)}

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mask, encode, decode.

        Args:
            images: (B, 3, H, W).

        Returns:
            The M masked patches as predicted, (B, M, p * p * 3), and which of all patches each is, int64 of that shape.
        """
        n_patches = self.backbone.mask_grid[0] * self.backbone.mask_grid[1]
        ids_keep, ids_masked, _ = random_masking(self.uniform(len(images), n_patches), self.mask_ratio)
        tokens = self.backbone(images, keep=ids_keep)
        prediction = self.decode(torch.cat([tokens.cls[:, None], tokens.patches], dim=1), ids_keep, ids_masked)
        return prediction, ids_masked[..., None].expand_as(prediction)

    def decode(self, visible: Tensor, ids_keep: Tensor, ids_masked: Tensor) -> Tensor:
        """Predict the masked patches from the visible tokens.

        The official code puts all tokens back in raster order. Blocks that are told the positions don't mind the order,
        so here the masked ones stay last: the last block need not compute the others.

        Args:
            visible: (B, 1 + K, D) cls and visible patches.
            ids_keep: (B, K) int64, which patches are visible.
            ids_masked: (B, M) int64, the others.

        Returns:
            (B, M, p * p * 3).
        """
        x, n_masked = self.decoder_embed(visible), ids_masked.shape[1]
        x = torch.cat([x, self.mask_token.to(x.dtype).expand(len(x), n_masked, -1)], dim=1)
        of_cls, of_patches = self.decoder_pos_embed[0, :1], self.decoder_pos_embed[0, 1:]
        places = torch.cat([ids_keep, ids_masked], dim=1)
        x = x + torch.cat([of_cls.expand(len(x), 1, -1), of_patches[places]], dim=1)
        *blocks, last = self.decoder_blocks
        for block in blocks:
            x = block(x)
        x = last(x, read=slice(-n_masked, None))
        return self.decoder_pred(self.decoder_norm(x))[:, -n_masked:]

    def show(self, images: Tensor) -> dict[str, Tensor]:
        """What is masked and what is predicted there. Normalised predictions get back the patch's own statistics."""
        x = normalize(images, self.drawn_views[0])
        prediction, at = self.reconstruct(x)
        patches = patchify(x, self.patch_size)
        if self.norm_pix:
            prediction = with_statistics_of(prediction, patches.gather(1, at))
        hidden, predicted = (
            unpatchify(each, self.patch_size, self.backbone.mask_grid)
            for each in (torch.zeros_like(patches).scatter(1, at, 1.0), patches.scatter(1, at, prediction))
        )
        predicted = denormalize(predicted, self.drawn_views[0])
        return {"masked": images * (1 - hidden) + 0.5 * hidden, "predicted": torch.lerp(images, predicted, hidden)}

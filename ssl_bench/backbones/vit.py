"""The one vision transformer that every method trains and every evaluator sees. timm inside, timm's state-dict keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch
from timm.models.beit import RelativePositionBias
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench.backbones.backbone import Tokens
from ssl_bench.backbones.init import INITS
from ssl_bench.backbones.positions import resample_positions, sincos_position_embedding
from ssl_bench.utils.errors import UserError, unknown

# name: (width, blocks, heads). tiny to huge are DeiT's and MAE's; micro is ours, for a laptop.
SIZES = {
    "vit_micro": (96, 4, 3),
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge": (1280, 32, 16),
}


class Backbone(VisionTransformer):
    """Vision transformer (Dosovitskiy et al. 2021; timm's implementation) with masking, dropping and pooling.

    Args:
        name: Size, patch and image size in pixels as in timm: ``vit_tiny_patch4_32``, ``vit_small_patch16_224``,
            ``vit_micro_patch8_32x64`` (height x width).
        num_heads: Attention heads; the size's own when left out (MoCo v3's ViT-S has 12).
        pos_embed: Position embedding: learned; fixed sine-cosine with the column first (sincos_xy, MAE) or with
            the row first (sincos_yx, MoCo v3); none.
        relative_positions: Add a learned bias for each relative position to the attention, one table for all blocks
            (BEiT, section 2.2 of its code's pre-training form).
        init: Initial weights: timm's truncated normal; mae (Xavier, ``models_mae.py``); moco_v3 (Xavier with q, k and
            v as separate matrices and a tiny cls token, ``vits.py``); dino (truncated normal,
            ``vision_transformer.py``); beit (truncated at one sigma and scaled down with depth,
            ``modeling_pretrain.py``; also EVA's).
        layer_scale: Initial layer scale; none when left out.
        drop_path: Stochastic depth of the last block, rising linearly from 0.
        registers: Register tokens (Darcet et al. 2024).
        mask_token: Own a learnable mask token, for ``forward(mask=...)``.
        resample: How learned positions are interpolated for images of another size: bicubic to that size (MAE, EVA),
            or by DINO's scale, which is a little larger. Sine-cosine ones are computed for it.

    Raises:
        UserError: Unknown size, or a patch size that doesn't divide the image.

    Example:
        >>> tokens = Backbone("vit_micro_patch8_32")(torch.zeros(2, 3, 32, 32))
        >>> tokens.cls.shape, tokens.patches.shape
        (torch.Size([2, 96]), torch.Size([2, 16, 96]))
    """

    def __init__(
        self,
        name: str,
        *,
        num_heads: int | None = None,
        pos_embed: Literal["learned", "sincos_xy", "sincos_yx", "none"] = "sincos_xy",
        relative_positions: bool = False,
        init: Literal["timm", "mae", "moco_v3", "dino", "beit"] = "mae",
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        registers: int = 0,
        mask_token: bool = False,
        resample: Literal["size", "dino"] = "size",
    ) -> None:
        size, patch, (height, width) = parse_name(name)
        dim, depth, heads = SIZES[size]
        heads = num_heads or heads
        if heads < 1 or dim % heads:
            raise UserError(f"num_heads {heads} does not divide the {dim} channels of {size}")
        super().__init__(
            img_size=(height, width),
            patch_size=patch,
            num_classes=0,
            global_pool="",
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            init_values=layer_scale,
            no_embed_class=registers > 0,
            reg_tokens=registers,
            drop_path_rate=drop_path,
            pos_embed="none" if pos_embed == "none" else "learn",
            dynamic_img_size=True,
        )
        self.name, self.image_size, self.patch_size = name, (height, width), patch
        self.grid_size: tuple[int, int] = (height // patch, width // patch)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if mask_token else None
        self.rel_pos_bias = RelativePositionBias(self.grid_size, heads) if relative_positions else None
        self.resample: str = pos_embed if pos_embed.startswith("sincos") else resample
        if pos_embed.startswith("sincos"):
            table = sincos_position_embedding(dim, self.grid_size, first=pos_embed[-2])
            assert self.pos_embed is not None
            self.pos_embed.data.copy_(table[-self.pos_embed.shape[1] :])
            self.pos_embed.requires_grad_(False)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)
        if init != "timm":
            INITS[init](self)

    def forward(  # type: ignore[override]
        self, images: Tensor, mask: Tensor | None = None, keep: Tensor | None = None, swap: Tensor | None = None
    ) -> Tokens:
        """Encode images.

        Args:
            images: (B, 3, H, W) float; sides that are multiples of the patch size, positions are interpolated.
            mask: (B, L) bool; True = the embedding of the patch is replaced by the mask token.
            keep: (B, K) int64; encode just these patches, in this order.
            swap: (B, L) int64; the patch whose embedding stands in each place (before masking and positions).
        """
        x = self._embed(images, mask, keep, swap)
        return self._split(self._blocks(x, layers=())[-1])

    def features(self, images: Tensor, poolings: Sequence[str]) -> dict[str, Tensor]:
        """Pooled features for evaluators; one forward serves all poolings.

        Args:
            images: (B, 3, H, W) float.
            poolings: Any of ``cls``; ``mean`` (of the patches); ``cls+mean`` (concatenated); ``last4`` (cls of the last
                four blocks, oldest first, each through the final norm; DINO's ViT-S probe); ``layer=k`` (mean of the
                patches after block k, counted from 1, through the final norm).

        Returns:
            pooling -> (B, D') float32.
        """
        depth = len(self.blocks)
        wanted = {p: pooling_layers(p, depth) for p in poolings}
        layers = sorted({layer for needed in wanted.values() for layer in needed})
        outputs = dict(zip(layers, self._blocks(self._embed(images), layers), strict=True))
        tokens = {layer: self._split(x) for layer, x in outputs.items()}
        pooled = {}
        for pooling, needed in wanted.items():
            parts = []
            for layer in needed:
                if pooling in ("cls", "cls+mean", "last4"):
                    parts.append(tokens[layer].cls)
                if pooling in ("mean", "cls+mean") or pooling.startswith("layer="):
                    parts.append(tokens[layer].patches.float().mean(dim=1))
            pooled[pooling] = torch.cat([part.float() for part in parts], dim=1)
        return pooled

    @property
    def poolings(self) -> tuple[str, ...]:
        """The poolings that ``features`` understands."""
        return "cls", "mean", "cls+mean", "last4", *(f"layer={k + 1}" for k in range(len(self.blocks)))

    def _embed(
        self, images: Tensor, mask: Tensor | None = None, keep: Tensor | None = None, swap: Tensor | None = None
    ) -> Tensor:
        """(B, prefix + L, D) embeddings with their positions, as ``forward`` describes them."""
        x = self.patch_embed(images)  # (B, rows, columns, D)
        grid = (x.shape[1], x.shape[2])
        assert self.rel_pos_bias is None or grid == self.grid_size, "relative positions are for one image size"
        x = x.flatten(1, 2)
        if swap is not None:
            x = x.gather(1, swap[..., None].expand(-1, -1, x.shape[-1]))
        if mask is not None:
            assert self.mask_token is not None, "this backbone was built without mask_token=True"
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        assert self.cls_token is not None
        cls: Tensor = self.cls_token
        if self.pos_embed is not None:
            rows = self.pos_embed.shape[1] - self.grid_size[0] * self.grid_size[1]  # prefix rows in the table: 1 or 0
            positions = resample_positions(self.pos_embed, self.grid_size, grid, rows, self.resample)
            x = x + positions[:, rows:]
            cls = cls + positions[:, :1] if rows else cls
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        prefix = [cls] if self.reg_token is None else [cls, self.reg_token]
        return torch.cat([*(token.expand(len(x), -1, -1).to(x.dtype) for token in prefix), x], dim=1)

    def _blocks(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Token sequences (B, prefix + L, D) after the named blocks (1 = first) or the last, through the norm."""
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()[None]  # (1, heads, 1 + L, 1 + L)
        # On a CPU in bf16 the backward of torch's fused attention is up to 1.5x slower than plain matrix products.
        mixed = torch.is_autocast_enabled(x.device.type)
        fused = not (x.device.type == "cpu" and mixed)
        if bias is not None and mixed:
            bias = bias.to(torch.get_autocast_dtype(x.device.type))
        outputs = []
        for i, block in enumerate(self.blocks, start=1):
            block.attn.fused_attn = fused  # type: ignore[union-attr]
            x = block(x, attn_mask=bias)
            if i in layers:
                outputs.append(self.norm(x))
        return outputs or [self.norm(x)]

    def _split(self, x: Tensor) -> Tokens:
        return Tokens(x[:, 0], x[:, self.num_prefix_tokens :])


def parse_name(name: str) -> tuple[str, int, tuple[int, int]]:
    """Size, patch size and image height and width of a backbone name.

    Example:
        >>> parse_name("vit_small_patch16_224")
        ('vit_small', 16, (224, 224))
    """
    match = re.fullmatch(r"(\w+?)_patch(\d+)_(\d+)(?:x(\d+))?", name)
    if not match or match[1] not in SIZES:
        raise unknown("backbone", name, [f"{size}_patch{{P}}_{{IMAGE}}" for size in SIZES])
    patch, height = int(match[2]), int(match[3])
    width = int(match[4] or height)
    if patch == 0 or height % patch or width % patch or not height or not width:
        raise UserError(
            f"backbone {name!r}: patch size {patch} does not divide the image size {height} x {width}; "
            f"patch sizes that do: {', '.join(str(p) for p in (2, 4, 8, 14, 16, 32) if not (height % p or width % p))}"
        )
    return match[1], patch, (height, width)


def pooling_layers(pooling: str, depth: int) -> list[int]:
    """The blocks (1 = first) whose output a pooling needs.

    Example:
        >>> pooling_layers("last4", 12)
        [9, 10, 11, 12]
    """
    if pooling in ("cls", "mean", "cls+mean"):
        return [depth]
    if pooling == "last4":
        return list(range(max(1, depth - 3), depth + 1))
    if (match := re.fullmatch(r"layer=(\d+)", pooling)) and 1 <= int(match[1]) <= depth:
        return [int(match[1])]
    raise unknown("pooling", pooling, ["cls", "mean", "cls+mean", "last4", f"layer=1 .. layer={depth}"])

"""The plain vision transformer. timm inside, timm's state-dict keys."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from timm.models.beit import RelativePositionBias
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench.backbones.backbone import Backbone, Stage, Tokens
from ssl_bench.backbones.init import INITS
from ssl_bench.backbones.names import layers_by_block, parse_patch_name
from ssl_bench.backbones.positions import resample_positions, sincos_position_embedding
from ssl_bench.nn.attention import by_input
from ssl_bench.nn.block import Block
from ssl_bench.utils.bounds import Depth, Few, Positive, Rate
from ssl_bench.utils.errors import UserError

# name: (width, blocks, heads). tiny to huge are DeiT's and MAE's; micro is ours, for a laptop.
SIZES = {
    "vit_micro": (96, 4, 3),
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge": (1280, 32, 16),
}


class ViT(Backbone, VisionTransformer):
    """Vision transformer (Dosovitskiy et al. 2021; timm's implementation) with masking, dropping and pooling.

    Args:
        name: Size, patch and image size in pixels as in timm: ``vit_tiny_patch4_32``, ``vit_small_patch16_224``,
            ``vit_micro_patch8_32x64`` (height x width).
        num_heads: Attention heads; the size's own when left out (MoCo v3's ViT-S has 12).
        pos_embed: Position embedding: learned; fixed sine-cosine with the column first (sincos_xy, MAE) or with
            the row first (sincos_yx, MoCo v3); none.
        relative_positions: Add a learned bias for each relative position to the attention: none; shared, one table for
            all blocks (BEiT's pre-training, ``modeling_pretrain.py``); per_block (its fine-tuning,
            ``modeling_finetune.py``).
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
        >>> tokens = ViT("vit_micro_patch8_32")(torch.zeros(2, 3, 32, 32))
        >>> tokens.cls.shape, tokens.patches.shape
        (torch.Size([2, 96]), torch.Size([2, 16, 96]))
    """

    family = "vit"
    can_mask = can_keep = can_swap = has_attention = has_heads = True
    num_heads: int
    has_cls = multi_crop = True

    def __init__(
        self,
        name: str,
        *,
        num_heads: Depth | None = None,
        pos_embed: Literal["learned", "sincos_xy", "sincos_yx", "none"] = "sincos_xy",
        relative_positions: Literal["none", "shared", "per_block"] = "none",
        init: Literal["timm", "mae", "moco_v3", "dino", "beit"] = "mae",
        layer_scale: Positive | None = None,
        drop_path: Rate = 0.0,
        registers: Few = 0,
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
            block_fn=Block,
        )
        self.name, self.image_size, self.cell = name, (height, width), patch
        self.num_heads = heads
        self.stages = (Stage(depth, dim, patch),)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if mask_token else None
        self.relative_positions, self.multi_crop = relative_positions, relative_positions == "none"
        self.rel_pos_bias = RelativePositionBias(self.grid, heads) if relative_positions == "shared" else None
        if relative_positions == "per_block":
            shared: Any = RelativePositionBias(self.grid, heads)
            self.register_buffer("relative_position_index", shared.relative_position_index, persistent=False)
            for block in self.blocks:
                own = nn.Parameter(torch.zeros_like(shared.relative_position_bias_table))
                block.attn.register_parameter("relative_position_bias_table", own)  # type: ignore[union-attr]
        self.resample: str = pos_embed if pos_embed.startswith("sincos") else resample
        if pos_embed.startswith("sincos"):
            table = sincos_position_embedding(dim, self.grid, first=pos_embed[-2])
            assert self.pos_embed is not None
            self.pos_embed.data.copy_(table[-self.pos_embed.shape[1] :])
            self.pos_embed.requires_grad_(False)
        if init != "timm":
            INITS[init](self)
        if self.mask_token is not None:  # last, so that the other weights are those without it
            normal = nn.init.normal_ if init != "beit" else partial(nn.init.trunc_normal_, a=-0.02, b=0.02)
            normal(self.mask_token, std=0.02)
        by_input(self)

    @classmethod
    def check_name(cls, name: str) -> None:
        """See ``parse_name``."""
        parse_name(name)

    @classmethod
    def patterns(cls) -> dict[str, dict[str, Any]]:
        """The sizes, at any patch and image size."""
        facts = {size: dict(zip(("width", "blocks", "heads"), shape, strict=True)) for size, shape in SIZES.items()}
        return {f"{size}_patch{{P}}_{{IMAGE}}": known for size, known in facts.items()}

    @classmethod
    def abilities(cls, name: str, **options: Any) -> frozenset[str]:
        """Relative positions are for one image size."""
        return super().abilities(name, **options) - (
            {"multi_crop"} if options.get("relative_positions", "none") != "none" else set()
        )

    def forward(  # type: ignore[override]
        self,
        images: Tensor,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        swap: Tensor | None = None,
        read: slice | None = None,
    ) -> Tokens:
        """See ``Backbone.forward``. Positions are interpolated; kept patches come out in the order given.

        ``read`` says which tokens of the last block are wanted (see ``Block``), the class token being the first.
        """
        return self._split(self._encode(self._embed(images, mask, keep, swap), blocks=(), read=read)[-1])

    def class_token(self, images: Tensor) -> Tensor:
        """See ``Backbone.class_token``."""
        return self(images, read=slice(0, 1)).cls

    def block_tokens(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """See ``Backbone.block_tokens``."""
        return [self._split(x) for x in self._encode(self._embed(images), blocks)]

    @property
    def layer_ids(self) -> dict[str, int]:
        """BEiT's rule (``optim_factory.py``) and MAE's (``util/lr_decay.py``); shared relative positions are last."""
        embeddings = ("patch_embed", "cls_token", "reg_token", "mask_token", "pos_embed", "norm_pre")
        return layers_by_block(dict(self.named_parameters()), embeddings, self.last_layer)

    @classmethod
    def from_official(cls, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """BEiT and EVA have no bias of the keys, which softmax would cancel (``modeling_pretrain.py``)."""
        own = dict(weights)
        for at in [name.removesuffix("q_bias") for name in weights if name.endswith(".attn.q_bias")]:
            if f"{at}v_bias" in own:
                q, v = own.pop(f"{at}q_bias"), own.pop(f"{at}v_bias")
                own[f"{at}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
        return own

    def fit_weight(self, name: str, value: Tensor) -> Tensor:
        """Positions of a square grid on this grid: absolute ones by ``resample``, relative ones by BEiT's rule
        (``run_class_finetuning.py``)."""
        relative = name.endswith("relative_position_bias_table")
        shape = self.state_dict()[name].shape
        if not (relative or name == "pos_embed") or value.ndim != len(shape) or value.shape[-1] != shape[-1]:
            return value
        prefix = 3 if relative else shape[1] - self.grid[0] * self.grid[1]
        side = math.isqrt(max(0, value.shape[-2] - prefix))
        if value.shape == shape or side == 0 or side**2 + prefix != value.shape[-2]:
            return value
        if relative:
            with warnings.catch_warnings(action="ignore"):  # timm's, about its own indexing
                return resize_rel_pos_bias_table(value, self.grid, tuple(shape))
        return resample_positions(value, (side, side), self.grid, prefix, self.resample)

    def block_modules(self) -> Sequence[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        """See ``Backbone.attention``."""
        _, maps = self.open_heads(images, range(self.num_heads))
        return maps[:, :, 0, self.num_prefix_tokens :].unflatten(2, self.grid_of((images.shape[-2], images.shape[-1])))

    def open_heads(
        self, images: Tensor, heads: Sequence[int] | Tensor = (), gates: Tensor | None = None
    ) -> tuple[Tokens, Tensor]:
        """See ``Backbone.open_heads``."""
        seen: list[Tensor] = []
        attention: Any = self.blocks[-1].attn
        handles = [attention.qkv.register_forward_hook(lambda module, args, output: seen.append(output))]
        if gates is not None:
            spread = gates.repeat_interleave(self.embed_dim // self.num_heads, dim=1)[:, None]
            handles.append(attention.proj.register_forward_pre_hook(lambda module, args: (args[0] * spread,)))
        try:
            tokens = self(images)
        finally:
            for handle in handles:
                handle.remove()
        with torch.autocast(images.device.type, enabled=False):
            chosen = heads if isinstance(heads, Tensor) else list(heads)
            q, k, _ = seen[0].float().unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)[:, :, chosen]
            logits = q @ k.transpose(-2, -1) * attention.scale  # (B, heads, N, N)
            if self.relative_positions != "none":
                logits = logits + self._relative_bias(len(self.blocks) - 1)[:, chosen]
            return tokens, logits.softmax(dim=-1)

    def _embed(
        self, images: Tensor, mask: Tensor | None = None, keep: Tensor | None = None, swap: Tensor | None = None
    ) -> Tensor:
        """(B, prefix + L, D) embeddings with their positions, as ``forward`` describes them."""
        x = self.patch_embed(images)  # (B, rows, columns, D)
        grid = (x.shape[1], x.shape[2])
        assert self.relative_positions == "none" or grid == self.grid, "relative positions are for one image size"
        x = x.flatten(1, 2)
        if swap is not None:
            x = x.gather(1, swap[..., None].expand(-1, -1, x.shape[-1]))
        if mask is not None:
            assert self.mask_token is not None, "this backbone was built without mask_token=True"
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        assert self.cls_token is not None
        cls: Tensor = self.cls_token
        if self.pos_embed is not None:
            rows = self.pos_embed.shape[1] - self.grid[0] * self.grid[1]  # prefix rows in the table: 1 or 0
            positions = resample_positions(self.pos_embed, self.grid, grid, rows, self.resample)
            x = x + positions[:, rows:]
            cls = cls + positions[:, :1] if rows else cls
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        prefix = [cls] if self.reg_token is None else [cls, self.reg_token]
        return torch.cat([*(token.expand(len(x), -1, -1).to(x.dtype) for token in prefix), x], dim=1)

    def _encode(self, x: Tensor, blocks: Sequence[int], read: slice | None = None) -> list[Tensor]:
        """Token sequences (B, prefix + L, D) after the named blocks (1 = first), or those read of the last, normed."""
        bias, outputs = None, []
        for i, block in enumerate(self.blocks, start=1):
            if self.relative_positions == "per_block" or (self.rel_pos_bias is not None and bias is None):
                bias = self._relative_bias(i - 1)
                if torch.is_autocast_enabled(x.device.type):
                    bias = bias.to(torch.get_autocast_dtype(x.device.type))
            x = block(x, attn_mask=bias, read=read if i == len(self.blocks) else None)
            if i in blocks:
                outputs.append(self.norm(x))
        return outputs or [self.norm(x)]

    def _relative_bias(self, block: int) -> Tensor:
        """(1, heads, 1 + L, 1 + L): what a block, counted from 0, adds to its attention."""
        if self.rel_pos_bias is not None:
            return self.rel_pos_bias()[None]
        attention: Any = self.blocks[block].attn
        index: Any = self.relative_position_index
        return attention.relative_position_bias_table[index].permute(2, 0, 1)[None]

    def _split(self, x: Tensor) -> Tokens:
        return Tokens(x[:, 0], x[:, self.num_prefix_tokens :])


def parse_name(name: str) -> tuple[str, int, tuple[int, int]]:
    """Size, patch size and image height and width of a backbone name.

    Example:
        >>> parse_name("vit_small_patch16_224")
        ('vit_small', 16, (224, 224))
    """
    return parse_patch_name(name, ViT.patterns())

"""The vision transformer of EVA-02 (Fang et al. 2023, arXiv 2303.11331). timm inside, timm's state-dict keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from timm.layers.pos_embed_sincos import apply_keep_indices_nlc, apply_rot_embed_cat
from timm.models.eva import Eva
from torch import Tensor, nn

from ssl_bench.backbones.backbone import Backbone, Stage, Tokens
from ssl_bench.backbones.names import layers_by_block, parse_patch_name
from ssl_bench.backbones.positions import resample_positions
from ssl_bench.nn.attention import by_input
from ssl_bench.utils.bounds import Pixels, Rate, Share

# name: (width, blocks, heads, sub-LN). Tiny and small have q, k and v in one matrix, packed SwiGLU and no norm inside
# it; base and large have separate matrices and the norm (the authors' table 1). micro is ours, for a laptop.
SIZES = {
    "eva02_micro": (96, 4, 3, False),
    "eva02_tiny": (192, 12, 3, False),
    "eva02_small": (384, 12, 6, False),
    "eva02_base": (768, 12, 12, True),
    "eva02_large": (1024, 24, 16, True),
}


class EVA02(Backbone, Eva):
    """Vision transformer with SwiGLU and rotary positions beside the learned ones ("TrV").

    Args:
        name: Size, patch and image size in pixels: ``eva02_small_patch14_224``.
        sub_norm: Norm inside the SwiGLU, and separate matrices of q, k and v: the form of base and large; the size's
            own when left out.
        patch_gradient: Factor on the gradient that reaches the patch embedding: 0.1 in the authors' pre-training
            (``stop_grad_conv1``).
        rope_grid: Side of the grid to which rotary positions of other grids are scaled: that of the pre-training (16)
            when a network goes on at another image size; its own when left out.
        drop_path: Stochastic depth of the last block, rising linearly from 0.
        mask_token: Own a learnable mask token, for ``forward(mask=...)``.

    Raises:
        UserError: Unknown size, or a patch size that doesn't divide the image.

    Example:
        >>> tokens = EVA02("eva02_micro_patch8_32")(torch.zeros(2, 3, 32, 32))
        >>> tokens.cls.shape, tokens.patches.shape
        (torch.Size([2, 96]), torch.Size([2, 16, 96]))
    """

    family = "eva02"
    can_mask = can_keep = can_swap = has_attention = True
    has_cls = multi_crop = True

    def __init__(
        self,
        name: str,
        *,
        sub_norm: bool | None = None,
        patch_gradient: Share = 1.0,
        rope_grid: Pixels | None = None,
        drop_path: Rate = 0.0,
        mask_token: bool = False,
    ) -> None:
        size, patch, (height, width) = parse_name(name)
        dim, depth, heads, own_norm = SIZES[size]
        sub_norm = own_norm if sub_norm is None else sub_norm
        super().__init__(
            img_size=(height, width),
            patch_size=patch,
            num_classes=0,
            global_pool="",  # so that the final norm is there
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            qkv_fused=not sub_norm,
            mlp_ratio=4 * 2 / 3,
            swiglu_mlp=True,
            scale_mlp=sub_norm,
            use_rot_pos_emb=True,
            ref_feat_shape=(rope_grid, rope_grid) if rope_grid else (height // patch, width // patch),
            drop_path_rate=drop_path,
            dynamic_img_size=True,
        )
        self.name, self.image_size, self.cell = name, (height, width), patch
        self.stages = (Stage(depth, dim, patch),)
        self.patch_gradient = patch_gradient
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if mask_token else None
        initialise(self, sub_norm)
        by_input(self)

    @classmethod
    def check_name(cls, name: str) -> None:
        """See ``parse_name``."""
        parse_name(name)

    @classmethod
    def patterns(cls) -> dict[str, dict[str, Any]]:
        """The sizes, at any patch and image size."""
        return {
            f"{size}_patch{{P}}_{{IMAGE}}": {"width": dim, "blocks": depth, "heads": heads}
            for size, (dim, depth, heads, _) in SIZES.items()
        }

    def forward(  # type: ignore[override]
        self, images: Tensor, mask: Tensor | None = None, keep: Tensor | None = None, swap: Tensor | None = None
    ) -> Tokens:
        """See ``Backbone.forward``. Positions are interpolated; kept patches come out in the order given."""
        return self._split(self._encode(images, (), mask, keep, swap)[-1])

    def block_tokens(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """See ``Backbone.block_tokens``."""
        return [self._split(x) for x in self._encode(images, blocks)]

    def _encode(
        self,
        images: Tensor,
        blocks: Sequence[int],
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        swap: Tensor | None = None,
    ) -> list[Tensor]:
        """Token sequences (B, 1 + L, D) after the named blocks (1 = first) or the last, through the norm."""
        x = self.patch_embed(images)  # (B, rows, columns, D)
        grid = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)
        if self.patch_gradient != 1:
            x = torch.lerp(x.detach(), x, self.patch_gradient)
        if swap is not None:
            x = x.gather(1, swap[..., None].expand(-1, -1, x.shape[-1]))
        if mask is not None:
            assert self.mask_token is not None, "this backbone was built without mask_token=True"
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        positions = resample_positions(cast(Tensor, self.pos_embed), self.grid, grid, 1, "size")
        x = x + positions[:, 1:]
        rope: Tensor = cast(Any, self.rope).get_embed(shape=list(grid))  # (L, 2 * head channels)
        if keep is not None:
            rope = apply_keep_indices_nlc(x, rope, keep).unsqueeze(1)  # (B, 1, K, 2 * head channels)
            x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        cls = (cast(Tensor, self.cls_token) + positions[:, :1]).expand(len(x), -1, -1).to(x.dtype)
        x = torch.cat([cls, x], dim=1)
        outputs = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, rope=rope)
            if number in blocks:
                outputs.append(self.norm(x))
        return outputs or [self.norm(x)]

    def _split(self, x: Tensor) -> Tokens:
        return Tokens(x[:, 0], x[:, 1:])

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        """See ``Backbone.attention``."""
        attention: Any = cast(Any, self.blocks[-1]).attn
        seen: list[Tensor] = []
        handle = attention.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            self(images)
        finally:
            handle.remove()
        x = seen[0]
        if attention.qkv is not None:
            q, k, _ = attention.qkv(x).chunk(3, dim=-1)
            q = q + attention.q_bias
        else:
            q, k = attention.q_proj(x), attention.k_proj(x)
        q, k = (t.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for t in (q, k))
        grid = self.grid_of((images.shape[-2], images.shape[-1]))
        rope = cast(Any, self.rope).get_embed(shape=list(grid))
        k = torch.cat([k[:, :, :1], apply_rot_embed_cat(k[:, :, 1:], rope)], dim=2)
        logits = q[:, :, :1] @ k.transpose(-2, -1) * attention.scale  # the class token's query is not rotated
        return logits.float().softmax(dim=-1)[:, :, 0, 1:].unflatten(2, grid)

    @property
    def layer_ids(self) -> dict[str, int]:
        """One layer a block (``optim_factory.py``)."""
        embeddings = ("patch_embed", "cls_token", "mask_token", "pos_embed")
        return layers_by_block(dict(self.named_parameters()), embeddings, self.last_layer)

    @classmethod
    def read_released(cls, content: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
        """The grid to which a file's rotary positions are scaled, where it isn't its own (``rope.py``).

        The table (cells, channels of a head) has the cosines of the rows and then of the columns; the first frequency
        is 1, so that its second cell, one column on, holds the step between columns.
        """
        for part in (content, *(value for value in content.values() if isinstance(value, Mapping))):
            table = part.get("rope.freqs_cos")
            if isinstance(table, Tensor):
                side = math.isqrt(len(table))
                scaled_to = round(side * math.acos(min(1.0, float(table[1, table.shape[1] // 2]))))
                return content, {"rope_grid": scaled_to} if scaled_to != side else {}
        return content, {}

    @classmethod
    def from_official(cls, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """SwiGLU (``w12`` packed, the gate first; or the gate ``w1`` and ``w2``); biases of separate q and v."""
        theirs = {"mlp.w12.": "mlp.fc1.", "mlp.w1.": "mlp.fc1_g.", "mlp.w2.": "mlp.fc1_x.", "mlp.w3.": "mlp.fc2."}
        theirs |= {"mlp.ffn_ln.": "mlp.norm."}
        own = {}
        for name, value in weights.items():
            for old, new in theirs.items():
                name = name.replace(old, new)
            at, _, kind = name.rpartition(".")
            if kind in ("q_bias", "v_bias") and f"{at}.q_proj.weight" in weights:
                name = f"{at}.{kind[0]}_proj.bias"
            own[name] = value
        return own

    def block_modules(self) -> Sequence[nn.Module]:
        """The blocks."""
        return list(self.blocks)


@torch.no_grad()
def initialise(network: EVA02, sub_norm: bool) -> None:
    """The authors' initial weights (``modeling_pretrain.py``), in place.

    Xavier-normal matrices, Xavier-uniform patch embedding, zero biases, tokens and positions from a normal of std 0.02
    cut off at one sigma; with the norm inside the SwiGLU, values, projections and the MLP times sqrt(ln(2 depth)).
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
            nn.init.zeros_(cast(Tensor, module.bias))
    for token in (network.cls_token, network.pos_embed, network.mask_token):
        if token is not None:
            nn.init.trunc_normal_(token, std=0.02, a=-0.02, b=0.02)
    if sub_norm:
        for name, parameter in network.named_parameters():
            if any(part in name for part in ("mlp.fc", "attn.proj", "attn.v_proj")):
                parameter.mul_(math.sqrt(math.log(2 * network.depth)))


def parse_name(name: str) -> tuple[str, int, tuple[int, int]]:
    """Size, patch size and image height and width of a backbone name.

    Example:
        >>> parse_name("eva02_small_patch14_224")
        ('eva02_small', 14, (224, 224))
    """
    return parse_patch_name(name, EVA02.patterns())

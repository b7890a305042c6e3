"""Hiera (Ryali et al. 2023, arXiv 2306.00989). timm inside, timm's state-dict keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from timm.models.hiera import Hiera as TimmHiera
from timm.models.hiera import HieraBlock, Reroll
from torch import Tensor, nn

from ssl_bench.backbones.backbone import Backbone, Stage, Tokens
from ssl_bench.backbones.names import check_size, layers_by_block
from ssl_bench.nn.attention import by_input
from ssl_bench.utils.bounds import Few, Rate
from ssl_bench.utils.errors import UserError, unknown

# name: (channels, heads of the first stage, blocks of each stage). tiny to huge are the paper's; micro is ours, for a
# laptop: three stages on patches of 2 pixels, so that 32 pixels are 4 x 4 mask units.
SIZES: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "hiera_micro": (32, 1, (1, 2, 2)),
    "hiera_tiny": (96, 1, (1, 2, 7, 2)),
    "hiera_small": (96, 1, (1, 2, 11, 2)),
    "hiera_base": (96, 1, (2, 3, 16, 3)),
    "hiera_base_plus": (112, 2, (2, 3, 16, 3)),
    "hiera_large": (144, 2, (2, 6, 36, 4)),
    "hiera_huge": (256, 4, (2, 6, 36, 4)),
}


class Hiera(Backbone, TimmHiera):
    """Hiera: stages that pool their queries, attention within mask units and then global.

    There is no class token: ``Tokens.cls`` is the norm of the mean of the tokens, which the classifier sees;
    ``Tokens.patches`` are the tokens through the same norm. A cell of ``keep`` is one mask unit, 32 pixels of the four
    stages; what is kept comes out in raster order of the units, whatever the order in which they are given, all tokens
    of a unit together. The pixels of other units are set to zero before the overlapping patch embedding.

    Args:
        name: Size and image size in pixels: ``hiera_tiny_224``, ``hiera_micro_32``.
        pooled_stages: How many stages begin with a pooling of the queries: all but the first when left out, which
            is classification's. No weight depends on it; ``unit_tokens`` has one less where it is left out.
        init: Initial weights: hiera (``hiera.py``: truncated normal, biases of 0.02), mae (``hiera_mae.py``: Xavier).
        drop_path: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        UserError: Unknown size, an image size that mask units don't divide, or as many pooled stages as there are
            stages or more.

    Example:
        >>> Hiera("hiera_micro_32")(torch.zeros(2, 3, 32, 32), keep=torch.tensor([[0, 5], [1, 2]])).patches.shape
        torch.Size([2, 2, 128])
    """

    family = "hiera"
    can_keep = has_units = True

    def __init__(
        self,
        name: str,
        *,
        pooled_stages: Few | None = None,
        init: Literal["hiera", "mae"] = "hiera",
        drop_path: Rate = 0.0,
    ) -> None:
        size, image_size = parse_name(name)
        dim, heads, blocks = SIZES[size]
        last = len(blocks) - 1
        pooled = last if pooled_stages is None else pooled_stages
        if not 0 <= pooled <= last:
            raise UserError(
                f"pooled_stages is {pooled}; {size} has {len(blocks)} stages, of which 0 to {last} can pool"
            )
        micro = last == 2  # three stages
        stride, side = 2 if micro else 4, 2**last
        super().__init__(
            img_size=image_size,
            num_classes=0,
            embed_dim=dim,
            num_heads=heads,
            stages=blocks,
            q_pool=pooled,
            mask_unit_size=(side, side),
            mask_unit_attn=(True, False, False) if micro else (True, True, False, False),
            patch_kernel=(3, 3) if micro else (7, 7),
            patch_stride=(stride, stride),
            patch_padding=(1, 1) if micro else (3, 3),
            drop_path_rate=drop_path,
            fix_init=False,
        )
        self.name, self.image_size, self.cell, self.mask_token = name, image_size, stride * side, None
        self.embed_dim = dim * 2**last
        self.stages = tuple(Stage(n, dim * 2**i, stride * 2 ** min(i, pooled)) for i, n in enumerate(blocks))
        self.reroll_units = Reroll(image_size, (stride,) * 2, [(2, 2)] * last, self.stage_ends, min(pooled, last - 1))
        initialise(self, init)
        self.blocks[self.last_blocks[-2]].__class__ = PoolingBlock  # of the same weights
        by_input(self)

    @classmethod
    def check_name(cls, name: str) -> None:
        """See ``parse_name``."""
        parse_name(name)

    @classmethod
    def patterns(cls) -> dict[str, dict[str, Any]]:
        """The sizes, at any image size."""
        return {
            f"{size}_{{IMAGE}}": {"width": dim * 2 ** (len(blocks) - 1), "blocks": sum(blocks), "heads": heads}
            for size, (dim, heads, blocks) in SIZES.items()
        }

    def forward(  # type: ignore[override]
        self, images: Tensor, mask: Tensor | None = None, keep: Tensor | None = None, swap: Tensor | None = None
    ) -> Tokens:
        """See ``Backbone.forward``. There is no mask token: units are left out, not replaced.

        Raises:
            UserError: ``mask`` or ``swap`` is given, or images of another size.
        """
        if mask is not None or swap is not None:
            raise UserError(f"{self.name} has no mask token: it can keep some of its mask units, not mask or swap them")
        (units,) = self._run(images, [self.depth], keep)
        return self._tokens(units, self.depth)

    def block_tokens(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """See ``Backbone.block_tokens``."""
        return [self._tokens(x, number) for x, number in zip(self._run(images, blocks), blocks, strict=True)]

    def unit_tokens(self, images: Tensor, keep: Tensor) -> list[Tensor]:
        """See ``Backbone.unit_tokens``. The last stage does not pool its queries, whatever ``pooled_stages`` is."""
        return self._run(images, self.last_blocks, keep, self.reroll_units)

    def _run(
        self, images: Tensor, blocks: Sequence[int], keep: Tensor | None = None, reroll: Reroll | None = None
    ) -> list[Tensor]:
        """(B, units, rows, columns, C), or without ``keep`` (B, rows, columns, C), after each of the blocks."""
        size = (images.shape[-2], images.shape[-1])
        if size != self.image_size:
            own = " x ".join(map(str, self.image_size))
            raise UserError(f"{self.name} takes images of {own} pixels, not {size[0]} x {size[1]}: its units are fixed")
        kept = None
        if keep is not None:
            keep = keep.sort(dim=1).values
            n_units = self.mask_grid[0] * self.mask_grid[1]
            kept = torch.zeros(len(keep), n_units, dtype=torch.bool, device=keep.device).scatter(1, keep, True)
        x = self.patch_embed(images, mask=None if kept is None else kept.view(-1, 1, *self.mask_grid))
        x = self.unroll(self._pos_embed(x))
        if keep is not None:  # tokens lie place by place of a unit, all units together
            batch, _, dim = x.shape
            index = keep[:, None, :, None].expand(-1, self.mu_size, -1, dim)
            x = x.view(batch, self.mu_size, -1, dim).gather(2, index).flatten(1, 2)
        outputs = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, False) if reroll and number == self.last_blocks[-2] + 1 else block(x)
            if number in blocks:
                outputs.append((reroll or self.reroll)(x, number - 1, mask=kept))
        return outputs

    def _tokens(self, x: Tensor, number: int) -> Tokens:
        patches = x.flatten(1, -2)
        mean = patches.float().mean(dim=1)
        if number <= self.depth - self.stages[-1].blocks:
            return Tokens(mean, patches)
        return Tokens(self.head.norm(mean), self.head.norm(patches))

    def final_norm(self, tokens: Tensor) -> Tensor:
        """See ``Backbone.final_norm``."""
        return self.head.norm(tokens)

    def drop_final_norm(self) -> None:
        """See ``Backbone.drop_final_norm``."""
        self.head.norm = nn.Identity()

    @property
    def layer_ids(self) -> dict[str, int]:
        """One layer a block, over all stages; the change of width belongs to its block."""
        embeddings = ("patch_embed", "pos_embed")
        return layers_by_block(dict(self.named_parameters()), embeddings, self.last_layer)

    @classmethod
    def from_official(cls, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The final norm and the classifier are in a head in timm: ``encoder_norm`` of ``hiera_mae.py``, ``norm`` and
        ``head.projection`` of ``hiera.py``."""
        theirs = {r"(encoder_)?norm\.": "head.norm.", r"head\.projection\.": "head.fc."}
        for pattern, ours in theirs.items():
            weights = {re.sub(f"^{pattern}", ours, name): value for name, value in weights.items()}
        return weights

    def block_modules(self) -> Sequence[nn.Module]:
        """The blocks of all stages."""
        return list(self.blocks)

    def no_weight_decay(self) -> set[str]:
        """Positions take none (``hiera.py``)."""
        return {"pos_embed"}


@torch.no_grad()
def initialise(network: TimmHiera, init: str) -> None:
    """Draw the initial weights.

    Args:
        network: In place. The biases of convolutions keep torch's default, as in both official files.
        init: "hiera" or "mae"; see ``Hiera``.
    """
    bias = 0.0 if init == "mae" else 0.02
    draw = nn.init.xavier_uniform_ if init == "mae" else partial(nn.init.trunc_normal_, std=0.02)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            draw(module.weight)
            nn.init.constant_(module.bias, bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.constant_(module.bias, bias)
        elif isinstance(module, nn.Conv2d):
            draw(module.weight.view(len(module.weight), -1))
    nn.init.trunc_normal_(cast(Tensor, network.pos_embed), std=0.02)


class PoolingBlock(HieraBlock):
    """timm's block at the start of a stage, which can also keep all its queries: its attention is global.

    The stride is set within the call, because blocks may be computed again for the gradient.
    """

    def forward(self, x: Tensor, pool: bool = True) -> Tensor:
        """(B, N, C) -> (B, N / 4, C'), or (B, N, C') without pooling."""
        attention: Any = self.attn
        own, attention.q_stride = attention.q_stride, attention.q_stride if pool else 1
        try:
            return super().forward(x)
        finally:
            attention.q_stride = own


def parse_name(name: str) -> tuple[str, tuple[int, int]]:
    """Size and image height and width of a backbone name.

    Example:
        >>> parse_name("hiera_base_plus_224")
        ('hiera_base_plus', (224, 224))
    """
    match = re.fullmatch(r"(\w+?)_(\d{1,5})(?:x(\d{1,5}))?", name)
    if not match or match[1] not in SIZES:
        raise unknown("backbone", name, Hiera.patterns())
    height = int(match[2])
    width = int(match[3] or height)
    unit = (2 if match[1] == "hiera_micro" else 4) * 2 ** (len(SIZES[match[1]][2]) - 1)
    if not height or not width or height % unit or width % unit:
        raise UserError(
            f"backbone {name!r}: the image size {height} x {width} must be a multiple of {unit} pixels, a mask unit"
        )
    check_size(name, (height, width), unit)
    return match[1], (height, width)

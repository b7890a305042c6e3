"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030). timm inside, timm's state-dict keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone, Stage, Tokens
from ssl_bench.backbones.names import check_size
from ssl_bench.utils.bounds import Rate
from ssl_bench.utils.errors import UserError, unknown

# name: (channels of the first stage, blocks and heads of each stage). tiny to large are the paper's (table 7); micro is
# ours, for a laptop: three stages, so that 32 pixels give 4 x 4 tokens.
LARGEST_WINDOW = 64  # patches of a side; a table and an index grow with its fourth power
SIZES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "swin_micro": (32, (2, 2, 2), (1, 2, 4)),
    "swin_tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "swin_large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


class Swin(Backbone, SwinTransformer):
    """Swin Transformer: attention in shifted windows, stages that halve the grid and double the channels.

    There is no class token: ``Tokens.cls`` is the mean of the tokens after the final norm. One cell of a mask is one
    token of the last stage, 32 pixels for four stages of patch 4 (SimMIM and iBOT mask so); the embeddings of all its
    patches are replaced, after the norm of the patch embedding. Images of other sizes are padded before they are
    shifted, as EsViT and iBOT do; timm shifts first, which gives other numbers where something is padded.

    Args:
        name: Size, patch, window and image size in pixels: ``swin_tiny_patch4_window7_224``.
        drop_path: Stochastic depth of the last block, rising linearly from 0 over the blocks of all stages.
        mask_token: Own a learnable mask token, for ``forward(mask=...)``.
        mask_init: The token's first value: normal with std 0.02 (SimMIM), or zeros (iBOT).

    Raises:
        UserError: Unknown size, or an image size that the last stage's tokens don't divide.

    Example:
        >>> tokens = Swin("swin_micro_patch2_window4_32")(torch.zeros(2, 3, 32, 32))
        >>> tokens.cls.shape, tokens.patches.shape
        (torch.Size([2, 128]), torch.Size([2, 16, 128]))
    """

    family = "swin"
    can_mask = multi_crop = True

    def __init__(
        self,
        name: str,
        *,
        drop_path: Rate = 0.0,
        mask_token: bool = False,
        mask_init: Literal["normal", "zeros"] = "normal",
    ) -> None:
        size, patch, window, image_size = parse_name(name)
        dim, blocks, heads = SIZES[size]
        super().__init__(
            img_size=image_size,
            patch_size=patch,
            num_classes=0,
            global_pool="",
            embed_dim=dim,
            depths=blocks,
            num_heads=heads,
            window_size=window,
            drop_path_rate=drop_path,
            strict_img_size=False,
        )
        strides = [patch * 2**stage for stage in range(len(blocks))]
        self.name, self.image_size, self.cell = name, image_size, strides[-1]
        self.stages = tuple(Stage(n, dim * 2**i, strides[i]) for i, n in enumerate(blocks))
        self.embed_dim = self.stages[-1].dim
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if mask_token else None
        if self.mask_token is not None and mask_init == "normal":
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        for block in self.block_modules():
            block.__class__ = PaddedBlock  # timm's stage builds its own class of block; the weights are the same

    @classmethod
    def check_name(cls, name: str) -> None:
        """See ``parse_name``."""
        parse_name(name)

    @classmethod
    def patterns(cls) -> dict[str, dict[str, Any]]:
        """The sizes, at any patch, window and image size."""
        return {
            f"{size}_patch{{P}}_window{{W}}_{{IMAGE}}": {
                "width": dim * 2 ** (len(blocks) - 1),
                "blocks": sum(blocks),
                "heads": heads[-1],
            }
            for size, (dim, blocks, heads) in SIZES.items()
        }

    def forward(  # type: ignore[override]
        self, images: Tensor, mask: Tensor | None = None, keep: Tensor | None = None, swap: Tensor | None = None
    ) -> Tokens:
        """See ``Backbone.forward``. Windows need every token: nothing can be kept or swapped.

        Raises:
            UserError: ``keep`` or ``swap`` is given.
        """
        if keep is not None or swap is not None:
            raise UserError(f"{self.name} encodes whole images: it can neither keep some of the cells nor swap them")
        return self._run(images, (), mask)[-1]

    def block_tokens(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """See ``Backbone.block_tokens``."""
        return self._run(images, blocks)

    def _run(self, images: Tensor, blocks: Sequence[int], mask: Tensor | None = None) -> list[Tokens]:
        x = self.patch_embed(images)  # (B, rows, columns, C) after its norm
        if mask is not None:
            assert self.mask_token is not None, "this backbone was built without mask_token=True"
            x = torch.where(self.spread(mask, (x.shape[1], x.shape[2]))[..., None], self.mask_token.to(x.dtype), x)
        outputs, number, last = [], 0, len(self.layers) - 1
        for i, stage in enumerate(self.layers):
            x = cast(Any, stage).downsample(x)
            for block in cast(Any, stage).blocks:
                x, number = block(x), number + 1
                if number in blocks:
                    outputs.append(_tokens(self.norm(x) if i == last else x))
        return outputs or [_tokens(self.norm(x))]

    def spread(self, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """A mask of cells as one of the patches that are embedded.

        Args:
            mask: (B, cells) bool.
            grid: Rows and columns of the patches.

        Returns:
            (B, rows, columns) bool.
        """
        side = self.cell // self.stages[0].stride
        cells = mask.unflatten(1, (grid[0] // side, grid[1] // side))
        return cells.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)

    @property
    def layer_ids(self) -> dict[str, int]:
        """iBOT's rule: a merging layer goes with the last block of the stage before it, where the official keys are."""
        starts = [0, *self.last_blocks[:-1]]  # blocks before each stage

        def layer_of(name: str) -> int:
            if match := re.match(r"layers\.(\d+)\.(?:blocks\.(\d+)|downsample)\.", name):
                return starts[int(match[1])] + (int(match[2]) + 1 if match[2] else 0)
            return 0 if name.startswith(("patch_embed", "mask_token")) else self.depth + 1

        return {name: layer_of(name) for name, _ in self.named_parameters()}

    @classmethod
    def from_official(cls, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Merging layers end a stage in ``swin_transformer.py`` and begin the next in timm."""
        if "layers.0.downsample.reduction.weight" not in weights:
            return weights
        return {
            re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name): value
            for name, value in weights.items()
        }

    def block_modules(self) -> Sequence[nn.Module]:
        """The blocks of all stages."""
        return [block for stage in self.layers for block in cast(Any, stage).blocks]


class PaddedBlock(SwinTransformerBlock):
    """timm's block with the official order for grids that windows don't divide: pad, shift, attend, shift back, crop.

    As in ``swin_transformer.py`` of EsViT, iBOT and Swin's detection code. What is padded takes part as keys.
    """

    def _attn(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        batch, height, width, channels = x.shape
        (rows, columns), (down, right) = self.window_size, self.shift_size
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        shifted = bool(down or right)
        if shifted:
            x = torch.roll(x, (-down, -right), (1, 2))
        padded = (x.shape[1], x.shape[2])
        windows = window_partition(x, self.window_size).view(-1, rows * columns, channels)
        attended = self.attn(windows, mask=self.get_attn_mask(x) if shifted else None)
        x = window_reverse(attended.view(-1, rows, columns, channels), self.window_size, *padded)
        if shifted:
            x = torch.roll(x, (down, right), (1, 2))
        return x[:, :height, :width].reshape(batch, height, width, channels)


def _tokens(x: Tensor) -> Tokens:
    """(B, rows, columns, C) -> tokens in raster order, with their mean in place of a class token."""
    patches = x.flatten(1, 2)
    return Tokens(patches.float().mean(dim=1).to(patches.dtype), patches)


def parse_name(name: str) -> tuple[str, int, int, tuple[int, int]]:
    """Size, patch size, window and image height and width of a backbone name.

    Example:
        >>> parse_name("swin_tiny_patch4_window7_224")
        ('swin_tiny', 4, 7, (224, 224))
    """
    match = re.fullmatch(r"(\w+?)_patch(\d{1,5})_window(\d{1,5})_(\d{1,5})(?:x(\d{1,5}))?", name)
    if not match or match[1] not in SIZES:
        raise unknown("backbone", name, Swin.patterns())
    patch, window, height = (int(match[i]) for i in (2, 3, 4))
    width = int(match[5] or height)
    cell = patch * 2 ** (len(SIZES[match[1]][1]) - 1)
    if min(patch, window, height, width) == 0 or height % cell or width % cell:
        raise UserError(
            f"backbone {name!r}: the image size {height} x {width} must be a multiple of {cell} pixels, which is a "
            "token of the last stage, and patch and window at least 1"
        )
    if window > LARGEST_WINDOW:
        raise UserError(f"backbone {name!r}: a window has at most {LARGEST_WINDOW} x {LARGEST_WINDOW} patches")
    check_size(name, (height, width), cell)
    return match[1], patch, window, (height, width)

"""iGPT (Chen et al., ICML 2020): a GPT-2 on the pixels of a small image, each a colour of a palette."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone, Stage, Tokens
from ssl_bench.backbones.igpt_released import released_names
from ssl_bench.backbones.names import layers_by_block, parse_patch_name
from ssl_bench.backbones.palette import (
    COLORS,
    decode_colors,
    fit_palette,
    nearest_colors,
    sample_colors,
    uniform_palette,
)
from ssl_bench.utils.bounds import Rate
from ssl_bench.utils.errors import UserError

# name: (width, blocks, heads). small to large are the released ones (paper, section 3.3); micro is ours, for a laptop.
SIZES = {
    "igpt_micro": (96, 4, 3),
    "igpt_small": (512, 24, 8),
    "igpt_medium": (1024, 36, 8),
    "igpt_large": (1536, 48, 16),
}


class ImageGPT(Backbone):
    """A transformer over colours in raster order: RMS norm before attention and MLP, no biases, learned positions.

    Every P x P pixels are averaged, as the paper makes images smaller, and the mean is replaced by the nearest colour
    of a palette of 512: one token. The palette is a buffer. ``prepare`` fits it to the training images by k-means;
    until then, and where nobody calls that, it is 8 x 8 x 8 evenly spaced colours. No gradient reaches the pixels.

    With the objective "ar" attention is causal and the input is shifted by one behind a learned start vector: the token
    that comes out at a place has seen the colours before it, not its own. With "bert" attention sees everything, and a
    masked cell has no embedding but that of its place. ``layer=k`` is read through the norm at the entrance of the next
    block, which is what the paper probes (section 2.3).

    Args:
        name: Size and image size in pixels, between them the side P of what a token averages: ``igpt_small_32`` (P = 1,
            1024 tokens), ``igpt_micro_patch4_32`` (64 tokens), ``igpt_large_patch7_224`` (the paper's 32 x 32 of
            ImageNet).
        objective: What the network is built for: ar (autoregressive) or bert.
        drop_path: Stochastic depth of the last block, rising linearly from 0; the paper has none.

    Raises:
        UserError: Unknown size, or a side P that doesn't divide the image.

    Example:
        >>> ImageGPT("igpt_micro_patch4_32")(torch.zeros(2, 3, 32, 32)).patches.shape
        torch.Size([2, 64, 96])
    """

    family = "igpt"
    has_palette = choose_layer = True

    palette: Tensor

    def __init__(self, name: str, *, objective: Literal["ar", "bert"] = "ar", drop_path: Rate = 0.0) -> None:
        super().__init__()
        size, patch, self.image_size = parse_name(name)
        dim, depth, heads = SIZES[size]
        self.name, self.cell, self.embed_dim, self.num_heads = name, patch, dim, heads
        self.stages = (Stage(depth, dim, patch),)
        self.mean = self.std = (0.5, 0.5, 0.5)  # pixels in [-1, 1], where the palette lies
        self.mask_token, self.objective = None, objective
        self.register_buffer("palette", uniform_palette())
        self.wte = nn.Parameter(torch.empty(COLORS, dim))
        self.wpe = nn.Parameter(torch.empty(self.grid[0] * self.grid[1], dim))
        self.sos = nn.Parameter(torch.empty(dim)) if objective == "ar" else None
        self.blocks = nn.ModuleList(Block(dim, heads, causal=objective == "ar") for _ in range(depth))
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.set_drop_path(drop_path)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """The initial weights of the authors' ``model.py``."""
        dim, depth = self.embed_dim, self.depth
        for block in self.blocks:
            nn.init.normal_(block.attn.qkv.weight, std=dim**-0.5)  # type: ignore[union-attr, arg-type]
            nn.init.normal_(block.attn.proj.weight, std=(dim * depth) ** -0.5)  # type: ignore[union-attr, arg-type]
            for layer in (block.mlp.fc1, block.mlp.fc2):  # type: ignore[union-attr]
                nn.init.normal_(layer.weight, std=0.02)  # type: ignore[union-attr, arg-type]
        nn.init.normal_(self.wte, std=0.02)
        nn.init.normal_(self.wpe, std=0.01)
        if self.sos is not None:
            nn.init.normal_(self.sos, std=0.02)

    @classmethod
    def check_name(cls, name: str) -> None:
        """See ``parse_name``."""
        parse_name(name)

    @classmethod
    def patterns(cls) -> dict[str, dict[str, Any]]:
        """The sizes, at any image size."""
        facts = {size: dict(zip(("width", "blocks", "heads"), shape, strict=True)) for size, shape in SIZES.items()}
        return {f"{size}{patch}_{{IMAGE}}": known for size, known in facts.items() for patch in ("", "_patch{P}")}

    @classmethod
    def abilities(cls, name: str, **options: Any) -> frozenset[str]:
        """Cells are masked with the objective "bert" alone."""
        return super().abilities(name, **options) | ({"mask"} if options.get("objective", "bert") == "bert" else set())

    def prepare(self, images: Sequence[Tensor], seed: int) -> None:
        """Fit the palette: 512 centres of the colours of the cells of training images (section 3.2)."""
        self.palette = fit_palette(sample_colors(images, self.grid, seed), COLORS, seed).to(self.palette)

    # Colours and tokens ----------------------------------------------------------------------------------------------

    def tokens(self, images: Tensor) -> Tensor:
        """The nearest colour of the palette for each cell: (B, 3, H, W) in [-1, 1] -> (B, L) int64."""
        if tuple(images.shape[-2:]) != self.image_size:
            own, seen = (" x ".join(map(str, size)) for size in (self.image_size, images.shape[-2:]))
            raise UserError(f"{self.name} takes images of {own} pixels, not {seen}: its positions are fixed")
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            pixels = F.avg_pool2d(images.float(), self.cell) if self.cell > 1 else images.float()
            return nearest_colors(pixels.flatten(2).transpose(1, 2), self.palette)

    def colors(self, tokens: Tensor) -> Tensor:
        """The image of tokens: (B, L) int64 -> (B, 3, H, W) float32 in [0, 1], each cell of one colour."""
        small = decode_colors(self.palette, tokens).unflatten(1, self.grid).permute(0, 3, 1, 2)
        return F.interpolate(small, scale_factor=self.cell) if self.cell > 1 else small

    def encode(
        self, tokens: Tensor, mask: Tensor | None = None, blocks: Sequence[int] = (), past: list[Past] | None = None
    ) -> list[Tensor]:
        """Run the network on tokens.

        Args:
            tokens: (B, n) int64, the colours of the first n places; with the objective "ar" the last isn't looked at.
            mask: (B, n) bool; True = no embedding of the colour.
            blocks: After which (1 = first, rising); the last if left out.
            past: Keys and values of the places before, one for each block, ``[()] * depth`` at first; extended in
                place. If there are any, ``tokens`` is (B, 1), the colour of the place before the one to compute.

        Returns:
            (B, n, D) after each of the blocks, through the norm of the next one.
        """
        x = F.embedding(tokens, self.wte)
        at = past[0][0].shape[2] if past and past[0] else 0
        if mask is not None:
            x = x * ~mask[..., None]
        if self.sos is not None and at == 0:
            x = torch.cat([self.sos.expand(len(x), 1, -1), x[:, :-1]], dim=1)
        x = x + self.wpe[at : at + x.shape[1]]
        norms = [*(block.norm1 for block in self.blocks[1:]), self.norm]
        wanted, found = tuple(blocks) or (self.depth,), []
        for number, (block, norm) in enumerate(zip(self.blocks, norms, strict=True), start=1):
            x = block(x, past, number - 1)
            if number in wanted:
                found.append(norm(x))  # type: ignore[operator]
        return found

    def forward(
        self, images: Tensor, mask: Tensor | None = None, keep: Tensor | None = None, swap: Tensor | None = None
    ) -> Tokens:
        """See ``Backbone.forward``. There is no mask token: a masked cell has its position alone.

        Raises:
            UserError: ``keep`` or ``swap`` is given, ``mask`` with the objective "ar", or images of another size.
        """
        if keep is not None or swap is not None or (mask is not None and self.objective == "ar"):
            raise UserError(f"{self.name} encodes whole images; with objective bert it can mask cells")
        return _pooled(self.encode(self.tokens(images), mask)[0])

    def block_tokens(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """See ``Backbone.block_tokens``; every block is read through the norm of the next."""
        return [_pooled(x) for x in self.encode(self.tokens(images), blocks=blocks)]

    @classmethod
    def read_released(cls, content: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
        """See ``released_names``; without a start vector the objective was bert."""
        weights = released_names(content)
        return weights, {"objective": "ar" if "sos" in weights else "bert"}

    @property
    def layer_ids(self) -> dict[str, int]:
        """One layer a block; colours, positions and the start vector are the embeddings."""
        return layers_by_block(dict(self.named_parameters()), ("wte", "wpe", "sos"), self.last_layer)

    def block_modules(self) -> Sequence[nn.Module]:
        """The blocks."""
        return list(self.blocks)


Past = tuple[Tensor, ...]  # keys and values (B, heads, n, D / heads) of a block


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, dim: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
        self.attn, self.mlp = Attention(dim, heads, causal=causal), MLP(dim)
        self.drop_path1, self.drop_path2 = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, past: list[Past] | None, number: int) -> Tensor:
        """(B, n, D) -> (B, n, D); keys and values of the places before are ``past[number]``."""
        x = x + self.drop_path1(self.attn(self.norm1(x), past, number))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Multi-head attention without biases."""

    def __init__(self, dim: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, past: list[Past] | None, number: int) -> Tensor:
        """See ``Block.forward``."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if past is not None:
            if before := past[number]:
                k, v = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)
            past[number] = (k, v)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal and q.shape[2] == k.shape[2])
        return self.proj(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers without biases, four times as wide between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, D) -> (B, n, D)."""
        return self.fc2(activation(self.fc1(x)))


def activation(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), an approximation of GELU.

    Example:
        >>> [round(v, 6) for v in activation(torch.tensor([-1.0, 0.0, 0.5, 2.0])).tolist()]
        [-0.154204, 0.0, 0.350388, 1.935659]
    """
    return x * torch.sigmoid(1.702 * x)


def _pooled(x: Tensor) -> Tokens:
    return Tokens(x.float().mean(dim=1), x)


def parse_name(name: str) -> tuple[str, int, tuple[int, int]]:
    """Size, side of a token in pixels, and image height and width of a backbone name.

    Example:
        >>> parse_name("igpt_small_32"), parse_name("igpt_large_patch7_224")
        (('igpt_small', 1, (32, 32)), ('igpt_large', 7, (224, 224)))
    """
    match = re.fullmatch(r"(\w+?)_([1-9]\d*)(?:x([1-9]\d*))?", name)
    if match and match[1] in SIZES:
        return match[1], 1, (int(match[2]), int(match[3] or match[2]))
    return parse_patch_name(name, ImageGPT.patterns())

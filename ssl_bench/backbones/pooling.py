"""Tokens, and what is made of those of each block: poolings for evaluators, maps for dense heads."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssl_bench.utils.errors import unknown


class Tokens(NamedTuple):
    """What a backbone returns, after the final norm."""

    cls: Tensor  # (B, D): the class token; without one the mean of the patches, as the family's papers pool
    patches: Tensor  # (B, L, D) in raster order, or (B, K, D) of those that were kept


class Stage(NamedTuple):
    """Blocks in sequence whose outputs have the same shape. A plain vision transformer is one stage."""

    blocks: int
    dim: int  # channels of a token
    stride: int  # pixels of a token's side


class Pooled(nn.Module, ABC):
    """Geometry and poolings of every backbone, from its stages and `block_tokens`; its attributes are `Backbone`'s."""

    has_cls: bool = False
    name: str
    image_size: tuple[int, int]
    cell: int
    stages: tuple[Stage, ...]

    @abstractmethod
    def block_tokens(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """See ``Backbone.block_tokens``."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens that come out."""
        return self.grid_of(self.image_size)

    @property
    def mask_grid(self) -> tuple[int, int]:
        """Rows and columns of the cells that ``mask``, ``keep`` and ``swap`` index."""
        height, width = self.image_size
        return height // self.cell, width // self.cell

    def grid_of(self, size: tuple[int, int], stage: int = -1) -> tuple[int, int]:
        """Rows and columns of the tokens of a stage for images of another size."""
        stride = self.stages[stage].stride
        return -(-size[0] // stride), -(-size[1] // stride)

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(stage.blocks for stage in self.stages)

    @property
    def last_layer(self) -> int:
        """The layer of the final norm and of whatever head comes behind; those between 0 and this are the blocks."""
        return self.depth + 1

    @property
    def poolings(self) -> tuple[str, ...]:
        """The poolings that ``features`` understands."""
        named = ["cls", "mean", "cls+mean", "last4"] if self.has_cls else ["mean", "last4"]
        several = ["stages"] if len(self.stages) > 1 else []
        return (*named, *several, *(f"layer={k + 1}" for k in range(self.depth)))

    def features(self, images: Tensor, poolings: Sequence[str]) -> dict[str, Tensor]:
        """Pooled features for evaluators; one forward pass serves all poolings.

        Args:
            images: (B, 3, H, W) float, normalised.
            poolings: Any of ``poolings``: ``cls``; ``mean`` (of the patches); ``cls+mean`` (concatenated); ``last4``
                (class tokens, or means where there is none, of the last four blocks, oldest first; DINO's ViT-S probe
                and EsViT's); ``stages`` (means of the last blocks of all stages); ``layer=k`` (mean of the patches
                after block k, counted from 1).

        Returns:
            pooling -> (B, D') float32.
        """
        wanted = {pooling: self.pooling_blocks(pooling) for pooling in poolings}
        blocks = sorted({block for needed in wanted.values() for block in needed})
        tokens = dict(zip(blocks, self.block_tokens(images, blocks), strict=True))
        pooled = {}
        for pooling, needed in wanted.items():
            parts = []
            for block in needed:
                if pooling in ("cls", "cls+mean") or (pooling == "last4" and self.has_cls):
                    parts.append(tokens[block].cls)
                if pooling not in ("cls", "last4") or (pooling == "last4" and not self.has_cls):
                    parts.append(self.mean_of(tokens[block]))
            pooled[pooling] = torch.cat([part.float() for part in parts], dim=1)
        return pooled

    def mean_of(self, tokens: Tokens) -> Tensor:
        """The mean (B, D) of the patches, float32, as the family's papers take it."""
        return tokens.patches.float().mean(dim=1) if self.has_cls else tokens.cls.float()

    def pooling_blocks(self, pooling: str) -> list[int]:
        """The blocks (1 = first) whose tokens a pooling needs.

        Raises:
            UserError: This backbone has no such pooling; it lists those that it has.
        """
        if pooling not in self.poolings:
            raise unknown(f"pooling of {self.name}", pooling, self.poolings)
        if pooling == "last4":
            return list(range(max(1, self.depth - 3), self.depth + 1))
        if pooling == "stages":
            return self.last_blocks
        match = re.fullmatch(r"layer=(\d+)", pooling)
        return [int(match[1]) if match else self.depth]

    @property
    def last_blocks(self) -> list[int]:
        """The number of the last block of each stage."""
        return [sum(stage.blocks for stage in self.stages[: i + 1]) for i in range(len(self.stages))]

    def feature_maps(self, images: Tensor, blocks: Sequence[int] | None = None) -> list[Tensor]:
        """Maps for dense heads.

        Args:
            images: (B, 3, H, W) float, normalised.
            blocks: After which blocks (1 to ``depth``, rising); the last of each stage when left out. For the pyramid
                that detection wants of a network of one stage, see ``pyramid.SimplePyramid``.

        Returns:
            (B, C_i, H_i, W_i) each, through the final norm if the block is of the last stage.
        """
        blocks = self.last_blocks if blocks is None else blocks
        maps = []
        for block, tokens in zip(blocks, self.block_tokens(images, blocks), strict=True):
            stage = sum(block > end for end in self.last_blocks)
            grid = self.grid_of((images.shape[-2], images.shape[-1]), stage)
            maps.append(tokens.patches.transpose(1, 2).unflatten(2, grid))
        return maps

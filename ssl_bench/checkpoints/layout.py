"""What a method's released files hold, as its ``method.yaml`` says, and which of its forms a file has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from ssl_bench.backbones.backbone import RGB
from ssl_bench.backbones.positions import sincos_position_embedding

SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
BLOCK_TABLE = ".attn.relative_position_bias_table"


@dataclass(frozen=True)
class Variant:
    """Files of a method whose backbone is not that of its recipes.

    Args:
        backbone: The options that differ.
        not_encoder: Tensors as of ``Layout``, besides the layout's.
        holds: What tells such a file, where the options don't: tensors -> their length.
        mean: Of the input, where it differs from the layout's, per channel, on the scale [0, 1].
        std: Per channel.
    """

    backbone: dict[str, Any] = field(default_factory=dict)
    not_encoder: tuple[str, ...] = ()
    holds: dict[str, int] = field(default_factory=dict)
    mean: RGB | None = None
    std: RGB | None = None


@dataclass(frozen=True)
class Layout:
    """What a method's released files hold.

    Args:
        branch: The one that the paper evaluates; "model" where the file holds just one network.
        not_encoder: Names of the tensors beside the backbone that belong to the method, not to the encoder; shell
            patterns: ``decoder_*``.
        rename: Parts of names, from dot to dot: theirs -> ours.
        variants: Other forms of its files.
        flags: What a reader must know of the released weights to compare fairly.
        mean: Of the input that the weights were trained with, per channel, on the scale [0, 1]; ImageNet's if left out.
        std: Per channel.
    """

    branch: str = "model"
    not_encoder: tuple[str, ...] = ()
    rename: dict[str, str] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    flags: tuple[str, ...] = ()
    mean: RGB | None = None
    std: RGB | None = None

    def variant(self, weights: Mapping[str, Tensor], options: Mapping[str, Any], grid: tuple[int, int]) -> Variant:
        """The form that weights have; the method's own where they have none of them.

        Args:
            weights: Of one branch.
            options: Of the method's backbone.
            grid: The encoder's, rows and columns.
        """
        seen = seen_options(weights, grid)
        for variant in (Variant(), *self.variants):
            wanted = {**options, **variant.backbone}
            if "layer_scale" in wanted:
                wanted["layer_scale"] = wanted["layer_scale"] is not None
            same = all(wanted.get(key, value) == value for key, value in seen.items())
            if same and all(name in weights and len(weights[name]) == n for name, n in variant.holds.items()):
                return variant
        return Variant()


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a tensor's name has one of the shell patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def seen_options(weights: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Any]:
    """The backbone's options that weights show: positions, relative positions, and whether there is a layer scale."""
    tables = [value for name, value in weights.items() if name.endswith(BLOCK_TABLE)]
    alike = all(torch.equal(table, tables[0]) for table in tables)
    relative = "shared" if SHARED_TABLE in weights or (tables and alike) else "per_block" if tables else "none"
    return {
        "pos_embed": position_kind(weights.get("pos_embed"), grid),
        "relative_positions": relative,
        "layer_scale": "blocks.0.ls1.gamma" in weights,
    }


def position_kind(table: Tensor | None, grid: tuple[int, int]) -> str:
    """Of a position table: none, learned, sincos_xy or sincos_yx.

    Args:
        table: (1, 1 + rows, D); no table if left out.
        grid: The encoder's, rows and columns; a table of another size is taken for a square one.
    """
    if table is None:
        return "none"
    if table.ndim != 3:
        return "learned"
    rows, dim = table.shape[1:]
    side = math.isqrt(rows - 1)
    of = grid if grid[0] * grid[1] + 1 == rows else (side, side)
    if of[0] * of[1] + 1 == rows and dim % 4 == 0:
        for kind in ("sincos_xy", "sincos_yx"):
            fixed = sincos_position_embedding(dim, of, kind[-2])
            if torch.allclose(table[0].float(), fixed, atol=2e-3):  # float16 files
                return kind
    return "learned"

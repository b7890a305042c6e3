"""Which of the forms that a method's released files have a file is in, told by its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_bench.backbones.positions import sincos_position_embedding
from ssl_bench.checkpoints.layout import Layout, Variant

SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
BLOCK_TABLE = ".attn.relative_position_bias_table"


def variant_of(
    layout: Layout, weights: Mapping[str, Tensor], options: Mapping[str, Any], grid: tuple[int, int]
) -> Variant:
    """The form that weights have; the method's own where they have none of them.

    Args:
        layout: Of the method.
        weights: Of one branch.
        options: Of the method's backbone.
        grid: The encoder's, rows and columns.
    """
    seen = seen_options(weights, grid)
    for variant in (Variant(), *layout.variants):
        wanted = {**options, **variant.backbone}
        if "layer_scale" in wanted:
            wanted["layer_scale"] = wanted["layer_scale"] is not None
        same = all(wanted.get(key, value) == value for key, value in seen.items())
        if same and all(name in weights and len(weights[name]) == n for name, n in variant.holds.items()):
            return variant
    return Variant()


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
    if table.ndim != 3 or len(table) != 1:
        return "learned"
    rows, dim = table.shape[1:]
    side = math.isqrt(max(0, rows - 1))
    of = grid if grid[0] * grid[1] + 1 == rows else (side, side)
    if 1 < of[0] * of[1] + 1 == rows and dim and dim % 4 == 0:
        for kind in ("sincos_xy", "sincos_yx"):
            fixed = sincos_position_embedding(dim, of, kind[-2])
            if torch.allclose(table[0].float(), fixed, atol=2e-3):  # float16 files
                return kind
    return "learned"

"""The text tower of the suite's CLIP: a small transformer over the bytes of a caption."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

START, END = b"\x02", b"\x03"  # marks around a caption: ASCII's start and end of text


class TextTower(nn.Module):
    """Causal transformer over the bytes of a caption; its feature is the token at the end mark (section 2.4).

    Args:
        dim: Width.
        depth: Blocks.
        heads: Attention heads.
        length: Bytes of the longest caption.
        out_dim: Dimension of the joint space.
    """

    def __init__(self, dim: int, depth: int, heads: int, length: int, out_dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, dim)
        self.pos_embed = nn.Parameter(torch.empty(length, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, out_dim, bias=False)
        # As in the authors' clip/model.py.
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        nn.init.normal_(self.projection.weight, std=dim**-0.5)
        residual = (2 * depth * dim) ** -0.5
        stds = {"qkv": dim**-0.5, "proj": residual, "fc1": (2 * dim) ** -0.5, "fc2": residual}
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=stds[name.rpartition(".")[2]])
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S) int64 bytes -> (B, out_dim)."""
        x = self.embed(tokens) + self.pos_embed
        for block in self.blocks:
            x = block(x, is_causal=True)
        end = (tokens == END[0]).byte().argmax(dim=1)
        return self.projection(self.norm(x[torch.arange(len(x), device=x.device), end]))


def tokenize(captions: Sequence[str]) -> Tensor:
    """UTF-8 bytes between a start and an end mark, zeros after.

    Returns:
        (N, S) int64; S is the length of the longest with its marks.

    Example:
        >>> tokenize(["a b", "c"]).tolist()
        [[2, 97, 32, 98, 3], [2, 99, 3, 0, 0]]
    """
    rows = [torch.tensor(list(START + caption.encode() + END)) for caption in captions]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)

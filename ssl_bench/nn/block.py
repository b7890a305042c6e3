"""A transformer block that may leave out what nobody reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from timm.models.vision_transformer import Block as PlainBlock
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.nn.attention import fused_attention

_all = False


@contextlib.contextmanager
def every_output() -> Iterator[None]:
    """Within, blocks compute all tokens, read or not: FLOPs are counted as papers count them, of whole blocks."""
    global _all
    before, _all = _all, True
    try:
        yield
    finally:
        _all = before


class Block(PlainBlock):
    """timm's block. Told which tokens are read, it gives these alone: the others serve as keys and values.

    In the last block of a network that is the class token for whoever wants no patches, and the masked places of MAE's
    decoder. Values and gradients are those of the whole block, which has no norms of queries and keys and no dropout.

    Example:
        >>> import torch
        >>> block, x = Block(8, 2), torch.randn(2, 5, 8)
        >>> block(x, read=slice(0, 1)).shape
        torch.Size([2, 1, 8])
        >>> torch.allclose(block(x, read=slice(3, None)), block(x)[:, 3:], atol=1e-6)
        True
    """

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, read: slice | None = None
    ) -> Tensor:
        """Encode tokens.

        Args:
            x: (B, N, D).
            attn_mask: (1 or B, heads, N, N) float, added to the attention's logits.
            is_causal: Tokens attend to themselves and to earlier ones.
            read: The tokens that are wanted; all when left out.

        Returns:
            (B, N, D), or (B, n, D) of the n that are read; within ``every_output`` all N.
        """
        if read is None or _all:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        assert not is_causal
        attended = self._attend(self.norm1(x), attn_mask, read)
        x = x[:, read] + self.drop_path1(self.ls1(attended))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    def _attend(self, x: Tensor, bias: Tensor | None, read: slice) -> Tensor:
        """What the tokens that are read take from all: (B, N, D) -> (B, n, D)."""
        attention: Any = self.attn
        q, k, v = attention.qkv(x).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, bias = q[:, :, read], None if bias is None else bias[:, :, read]
        if fused_attention(x):
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            logits = (q * attention.scale) @ k.transpose(-2, -1)
            mixed = (logits if bias is None else logits + bias).softmax(dim=-1) @ v
        return attention.proj(mixed.transpose(1, 2).flatten(2))

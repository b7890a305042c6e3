"""torch's fused attention against plain matrix products on one CPU thread, with and without a gradient, by length.

    python benchmarks/attention.py [--rounds 5]

Both ways run in turn, within the heads of our micro, tiny and small ViTs, on as many images as make a batch of the same
number of values. A ratio above 1: plain products are faster. It is where ``ssl_bench.nn.attention.SHORT`` comes from.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.utils.memory import keep_freed_memory

HEADS = {"micro": (3, 32), "tiny": (3, 64), "small": (6, 64)}  # heads and channels of each
TOKENS = (5, 9, 17, 26, 37, 50, 65, 197)
VALUES = 2**19  # of q, k and v each
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As timm's blocks compute it without fused attention."""
    weights: Tensor = ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(dim=-1)
    return weights @ v


def seconds(attention: Attention, qkv: Tensor) -> float:
    """Processor seconds of attention, from one layer's output to the next one's input, and back with a gradient."""
    start = time.process_time()
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    out = attention(q, k, v).transpose(1, 2).flatten(2)
    if out.requires_grad:
        out.backward(torch.ones_like(out))
    return time.process_time() - start


def ratio(tokens: int, heads: int, channels: int, gradient: bool, rounds: int) -> float:
    """Fused over plain, the median over pairs."""
    qkv = torch.randn(VALUES // (tokens * heads * channels), tokens, 3, heads, channels, requires_grad=gradient)
    pairs = [(seconds(F.scaled_dot_product_attention, qkv), seconds(plain, qkv)) for _ in range(4 * rounds)]
    return statistics.median(fused / products for fused, products in pairs[2:])


def main() -> None:
    """Print a line for each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    keep_freed_memory()
    print("tokens  " + "  ".join(f"{name}: training, frozen" for name in HEADS))
    for tokens in TOKENS:
        found = [[ratio(tokens, *size, gradient, rounds) for gradient in (True, False)] for size in HEADS.values()]
        print(f"{tokens:6}  " + "  ".join(f"{a:15.2f} {b:7.2f}" for a, b in found), flush=True)


if __name__ == "__main__":
    main()

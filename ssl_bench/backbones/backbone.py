"""What every backbone returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Tokens(NamedTuple):
    """What the backbone returns, after the final norm."""

    cls: Tensor  # (B, D)
    patches: Tensor  # (B, L, D), or (B, K, D) of the kept patches

"""Random masks of patches, as pure functions. Everywhere, True means masked."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Shuffle(NamedTuple):
    """Which patches stay visible, and how to undo the shuffle (MAE, section 3)."""

    ids_keep: Tensor  # (B, K) int64, the visible patches in shuffled order
    ids_restore: Tensor  # (B, L) int64, position of each patch in [visible, masked]
    mask: Tensor  # (B, L) bool, True = masked


def random_masking(noise: Tensor, mask_ratio: float) -> Shuffle:
    """Keep the patches with the smallest noise, as MAE does.

    Args:
        noise: (B, L) float, one draw a patch.
        mask_ratio: Part of the patches to mask; ``int(L * (1 - mask_ratio))`` stay visible.

    Example:
        >>> import torch
        >>> s = random_masking(torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.8, 0.4]]), 0.75)
        >>> s.ids_keep.tolist(), s.ids_restore.tolist(), s.mask.int().tolist()
        ([[1, 5]], [[7, 0, 4, 2, 5, 1, 6, 3]], [[1, 0, 1, 1, 1, 0, 1, 1]])
    """
    n_keep = int(noise.shape[1] * (1 - mask_ratio))
    ids_shuffle = noise.argsort(dim=1)
    ids_restore = ids_shuffle.argsort(dim=1)
    return Shuffle(ids_shuffle[:, :n_keep], ids_restore, ids_restore >= n_keep)

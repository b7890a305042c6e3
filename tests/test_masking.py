"""Random masks: the worked example of MAE's code, and counts."""

from __future__ import annotations

import pytest
import torch

from ssl_bench.masking import random_masking


def test_worked_example() -> None:
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.8, 0.4], [0.05, 0.95, 0.15, 0.85, 0.25, 0.75, 0.35, 0.65]])
    keep, restore, mask = random_masking(noise, 0.75)
    x = torch.arange(16).view(2, 8)
    assert x.gather(1, keep).tolist() == [[1, 5], [8, 10]]
    assert mask.int().tolist() == [[1, 0, 1, 1, 1, 0, 1, 1], [0, 1, 0, 1, 1, 1, 1, 1]]
    assert restore.tolist() == [[7, 0, 4, 2, 5, 1, 6, 3], [0, 7, 1, 6, 2, 5, 3, 4]]


@pytest.mark.parametrize(("patches", "kept"), [(196, 49), (256, 64), (49, 12)])
def test_counts_truncate(patches: int, kept: int) -> None:
    keep, _, mask = random_masking(torch.rand(5, patches), 0.75)
    assert keep.shape == (5, kept)
    assert (mask.sum(dim=1) == patches - kept).all()

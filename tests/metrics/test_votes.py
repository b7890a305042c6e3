"""Votes of neighbours: the worked number of DINO's k-NN (``eval_knn.py``)."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ssl_bench.metrics.votes import votes


def test_dino_numbers() -> None:
    train = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
    similarity, nearest = (F.normalize(torch.tensor([[0.9, 0.3]])) @ train.T).topk(4)
    assert similarity[0].tolist() == pytest.approx([0.948683, 0.948683, 0.316228, -0.948683], abs=1e-5)
    labels = torch.tensor([0, 1, 1, 2])[nearest]
    ((_, found),) = votes(similarity, labels, 3, ks=[3], temperature=0.07)
    share = found[0] / found.sum()
    assert share.argmax() == 1 and share[1].item() == pytest.approx(0.500030, abs=1e-5)

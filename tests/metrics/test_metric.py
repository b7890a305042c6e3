"""Accuracies against torchmetrics."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from ssl_bench.metrics.metric import accuracy_metric, true_class_rank


@pytest.mark.parametrize("k", [1, 3, 5])
def test_ranks_give_the_accuracies_of_torchmetrics(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(200, 7, generator=generator), torch.randint(7, (200,), generator=generator)
    theirs = multiclass_accuracy(scores, labels, num_classes=7, average="micro", top_k=k)
    found = accuracy_metric((true_class_rank(scores, labels) < k).numpy())
    assert found.value == pytest.approx(100 * float(theirs), abs=1e-4)

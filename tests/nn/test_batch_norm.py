"""Batch norm over the rows of two gloo processes against one process that holds them all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from two_processes import in_two

from ssl_bench.nn.batch_norm import BatchNorm1d

# Rows of the two processes.
SPLITS = [(4, 4), (0, 3), (1, 0), (1, 4), (6, 2), (1, 1), (0, 0)]


def rows(n: int) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) * torch.tensor([1.0, 5.0, 0.5]) + 1


def outcome(x: Tensor, weights: Tensor) -> list[Tensor]:
    """Output, gradients and running statistics of two steps with the loss sum(weights * output^2)."""
    norm = BatchNorm1d(3)
    nn.init.constant_(norm.weight, 1.5)
    nn.init.constant_(norm.bias, -0.5)
    x = x.clone().requires_grad_()
    for _ in range(2):
        out = norm(x)
        (weights * out.square()).sum().backward()
    assert x.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    buffers = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    return [out.detach(), x.grad, norm.weight.grad, norm.bias.grad, *(b.float() for b in buffers if b is not None)]


def _process(rank: int, folder: str) -> None:
    found = []
    for split in SPLITS:
        x, weights = (part.split(list(split))[rank] for part in (rows(sum(split)), rows(sum(split)) - 1.5))
        found.append(outcome(x, weights))
    torch.save(found, f"{folder}/{rank}")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[list[list[Tensor]]]:
    folder = tmp_path_factory.mktemp("gloo")
    in_two(_process, str(folder), group=True)
    return [torch.load(Path(folder) / str(rank)) for rank in range(2)]


@pytest.mark.parametrize("case", range(len(SPLITS)), ids=[f"{a}+{b} rows" for a, b in SPLITS])
def test_two_processes_are_one_with_all_rows(case: int, two_processes: list[list[list[Tensor]]]) -> None:
    n = sum(SPLITS[case])
    expected = outcome(rows(n), rows(n) - 1.5)
    (out, grad, weight, bias, *buffers), (out2, grad2, weight2, bias2, *buffers2) = (of[case] for of in two_processes)
    joint = [torch.cat([out, out2]), torch.cat([grad, grad2]), weight + weight2, bias + bias2, *buffers]
    for found, value in zip(joint, expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-4)
    for found, value in zip(buffers2, buffers, strict=True):
        torch.testing.assert_close(found, value)


def test_it_is_torchs_where_torch_computes() -> None:
    x, ours, theirs = rows(7), BatchNorm1d(3), nn.BatchNorm1d(3)
    torch.testing.assert_close(ours(x), theirs(x))
    assert theirs.running_var is not None
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x[:1]), theirs.eval()(x[:1]))


def test_one_row_has_no_variance_and_none_changes_nothing() -> None:
    norm = BatchNorm1d(3)
    assert (norm(rows(1)) == 0).all()
    assert norm.running_mean is not None and norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, 0.1 * rows(1)[0])
    torch.testing.assert_close(norm.running_var, torch.full((3,), 0.9))
    before = [b.clone() for b in norm.buffers()]
    assert norm(rows(0)).shape == (0, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))
    assert norm(rows(1).bfloat16()).dtype == torch.bfloat16

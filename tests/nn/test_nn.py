"""Heads, EMA: the worked numbers of MoCo v3's code."""

from __future__ import annotations

import torch
from torch import nn

from ssl_bench.nn.ema import ema_update
from ssl_bench.nn.heads import mlp
from ssl_bench.utils.distributed import gather


def test_mlp_is_moco_v3s_projector() -> None:
    head = mlp([384, 4096, 4096, 256], bias=False, last_norm=True)
    shapes = {k: tuple(v.shape) for k, v in head.state_dict().items() if k.endswith("weight")}
    assert shapes == {
        "0.weight": (4096, 384),
        "1.weight": (4096,),
        "3.weight": (4096, 4096),
        "4.weight": (4096,),
        "6.weight": (256, 4096),
    }
    assert not any(isinstance(m, nn.Linear) and m.bias is not None for m in head)


def test_last_norm_number() -> None:
    norm = mlp([2, 2], last_norm=True)[-1]
    out = norm(torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 4.0]]))
    expected = torch.tensor([[-1.224743, -1.224743], [0.0, 1.224743], [1.224743, 0.0]])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_ema_is_exact_and_leaves_buffers() -> None:
    target, source = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.constant_(target.weight, 1.0)
    nn.init.constant_(source.weight, 3.0)
    source.running_mean += 7  # type: ignore[operator]
    ema_update(target, source, 0.9)
    torch.testing.assert_close(target.weight.data, torch.full((2,), 1.2))
    assert target.running_mean is not None and target.running_mean.abs().sum() == 0


def test_gather_in_one_process_is_the_identity() -> None:
    x = torch.randn(3, 2)
    assert gather(x) is x


def test_ema_matches_parameters_by_name() -> None:
    source, target = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}), nn.ModuleDict({"b": nn.Linear(2, 2)})
    expected = 0.9 * target["b"].weight + 0.1 * source["b"].weight
    ema_update(target, source, 0.9)
    torch.testing.assert_close(target["b"].weight, expected)

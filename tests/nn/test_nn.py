"""Position tables, heads, EMA: the worked numbers of MAE's and MoCo v3's code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_bench.backbones.positions import resample_positions, sincos_position_embedding
from ssl_bench.nn.ema import ema_update
from ssl_bench.nn.heads import mlp
from ssl_bench.utils.distributed import gather

ONE = [0.841471, 0.01, 0.540302, 0.99995]
ZERO = [0.0, 0.0, 1.0, 1.0]
TWO = [0.909297, 0.019999, -0.416147, 0.9998]


@pytest.mark.parametrize("first", ["x", "y"])
def test_sincos_numbers(first: str) -> None:
    table = sincos_position_embedding(8, (3, 3), first=first)
    cells = {(r, c): table[1 + 3 * r + c] for r in range(3) for c in range(3)}
    along, across = [*ONE, *ZERO], [*ZERO, *ONE]
    expected = {
        (0, 0): [*ZERO, *ZERO],
        (0, 1): along if first == "x" else across,
        (1, 0): across if first == "x" else along,
        (2, 2): [*TWO, *TWO],
    }
    assert table[0].abs().sum() == 0  # the cls token has no position
    for cell, values in expected.items():
        torch.testing.assert_close(cells[cell], torch.tensor(values), rtol=0, atol=1e-5)


def test_sincos_sums_of_moco_v3() -> None:
    table = sincos_position_embedding(384, (14, 14), first="y").double()
    assert table.sum().item() == pytest.approx(34713.82, abs=0.01)
    assert table.norm().item() == pytest.approx(193.98969, abs=1e-4)


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


def test_resample_keeps_the_prefix_and_constants() -> None:
    table = torch.cat([torch.full((1, 1, 4), 5.0), torch.full((1, 9, 4), 2.0)], dim=1)
    out = resample_positions(table, (3, 3), (4, 5), prefix=1)
    assert out.shape == (1, 21, 4)
    torch.testing.assert_close(out[:, 0], table[:, 0])
    torch.testing.assert_close(out[:, 1:], torch.full((1, 20, 4), 2.0))


def test_positions_are_resampled_as_in_dino() -> None:
    table = torch.arange(17 * 4.0).reshape(1, 17, 4)
    new = resample_positions(table, (4, 4), (2, 2), 1)[0]
    assert new[0].tolist() == [0, 1, 2, 3]
    expected = torch.tensor([11.248611, 19.604643, 44.672752, 53.028767])[:, None] + torch.arange(4)
    torch.testing.assert_close(new[1:], expected, rtol=0, atol=1e-5)


def test_ema_matches_parameters_by_name() -> None:
    source, target = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}), nn.ModuleDict({"b": nn.Linear(2, 2)})
    expected = 0.9 * target["b"].weight + 0.1 * source["b"].weight
    ema_update(target, source, 0.9)
    torch.testing.assert_close(target["b"].weight, expected)

"""Sharded blocks: what two processes hold, clip and update is what one does, whatever the sizes and the optimiser."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from two_processes import in_two

from ssl_bench.nn.ema import ema_update
from ssl_bench.nn.optimizers import Training, build_optimizer, clip_each, no_decay_on_vectors
from ssl_bench.nn.sharding import (
    average_gradients,
    blocks_of,
    clip_norm,
    is_sharded,
    kinds,
    like,
    local,
    shard,
    step_apart,
    unshard,
    whole,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
OPTIMIZERS = ("adamw", "lars", "sgd", "RAdam", "Adagrad")


class Block(nn.Module):
    """Of sizes that two processes can't halve, and one of a single row."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 5), nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.ones(1))
        self.fixed = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("table", torch.arange(3.0), persistent=False)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) -> (N, 3)."""
        self.seen += 1
        return x + self.scale * self.down(self.up(x).relu()) + self.fixed * self.table


class Network(nn.Module):
    """Two blocks, a moving average of them, and what is around them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks, self.head = nn.Linear(4, 3), nn.Sequential(Block(), Block()), nn.Linear(3, 2)
        self.average = copy.deepcopy(self.blocks).requires_grad_(False)

    def step(self, x: Tensor) -> Tensor:
        """A loss."""
        x = self.embed(x)
        with torch.no_grad():
            ema_update(self.average, self.blocks, 0.5)
            target = self.average(x)
        return (self.head(self.blocks(x)) - target[:, :2]).square().mean()


def train(optimizer: str, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Weights and the optimiser's state after three steps; after the first, all goes through plain tensors."""
    torch.manual_seed(0)
    network = Network()
    if world > 1:
        shard(network, init_device_mesh("cpu", (world,)), "step")
        held = [p for block in blocks_of(network) for p in block.parameters()]
        assert len(blocks_of(network)) == 4 and is_sharded(network)
        assert sum(local(p).numel() for p in held) < sum(p.numel() for p in held)
        assert [len(kind) for kind in kinds(network.parameters())] == [len(held), 4]
    training = Training(optimizer=optimizer, base_lr=1.0, batch_size=8, weight_decay=0.1)
    built = build_optimizer(no_decay_on_vectors(network.named_parameters()), training, training.lr)
    if world > 1:
        step_apart(built)
    groups = [len(group["params"]) for group in built.param_groups]
    for step in range(3):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step)).chunk(world)[rank]
        loss = network.step(x)
        built.zero_grad()
        loss.backward()
        if world > 1:
            average_gradients(network)
        if step == 1:
            clip_each(network.parameters(), 0.2)
        if step == 2:
            clip_norm(network.parameters(), 0.3)
        for group in built.param_groups:
            group["lr"] = 0.1 / (1 + step)
        built.step()
        assert [len(group["params"]) for group in built.param_groups] == groups
        if step == 0 and world > 1:  # a checkpoint, and what goes on from it
            state, moments = whole(network.state_dict()), whole(built.state_dict())
            parameters = [p for group in built.param_groups for p in group["params"]]
            own = network.state_dict()
            network.load_state_dict({name: like(torch.clone(value), own[name]) for name, value in state.items()})
            for index, of_parameter in moments["state"].items():
                for key, value in of_parameter.items():
                    of_parameter[key] = like(value, parameters[index]) if isinstance(value, Tensor) else value
            built.load_state_dict(moments)
    moments = whole(built.state_dict()["state"])
    unshard(network)
    assert not is_sharded(network) and type(network) is Network
    assert not any(isinstance(module, FSDPModule) for module in network.modules())
    assert [p.requires_grad for p in network.average.parameters()] == [False] * 12
    copy.deepcopy(network).step(torch.zeros(2, 4))  # of which nothing is left
    assert all(torch.equal(block.table, torch.arange(3.0)) for block in blocks_of(network))
    return {"weights": network.state_dict(), "state": moments}


def _train_all(rank: int, folder: Path) -> None:
    for optimizer in OPTIMIZERS:
        found = train(optimizer, rank, 2)
        if rank == 0:
            torch.save(found, folder / f"{optimizer}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    in_two(_train_all, folder, group=True)
    return folder


@linux
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sharded_training_is_that_of_one_process(optimizer: str, trained: Path) -> None:
    two, one = torch.load(trained / f"{optimizer}.pt"), train(optimizer)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(two["state"], one["state"], rtol=1e-5, atol=1e-6)


def test_blocks_within_blocks_and_without_weights_are_none() -> None:
    outer = Block()
    outer.inner = Block()
    empty: Any = type("EmptyBlock", (nn.Module,), {})()
    assert blocks_of(nn.ModuleList([outer, empty, nn.Linear(2, 2)])) == [outer]


def test_what_is_not_sharded_stays() -> None:
    network = Network()
    before = dict(network.named_modules())
    unshard(network)
    assert dict(network.named_modules()) == before and not is_sharded(network)
    value = torch.ones(2)
    assert whole({"a": [value, 1]}) == {"a": [value, 1]} and like(value, None) is value and local(value) is value

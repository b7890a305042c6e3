"""Networks from outside: their features, their maps, and how they are trained."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import blobs
from torch import Tensor, nn
from torchvision import models

from ssl_bench.backbones.network import PlainNetwork
from ssl_bench.checkpoints.model import as_checkpoint
from ssl_bench.evaluations.dense import feature_map
from ssl_bench.evaluations.trained.detector import Pyramid
from ssl_bench.evaluations.trained.network import Network, layer_groups
from ssl_bench.evaluations.trained.upernet import UPerNet
from ssl_bench.utils.errors import UserError


def plain(network: nn.Module, size: int = 32) -> PlainNetwork:
    found = as_checkpoint(network, "mine", size).encoder
    assert isinstance(found, PlainNetwork)
    return found


def resnet() -> nn.Module:
    torch.manual_seed(0)
    network = models.resnet18(weights=None)
    network.fc = nn.Identity()  # type: ignore[assignment]
    return network


class OneSize(nn.Module):
    """A vision transformer as users have it: one vector of images of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 16 * 16, 6)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))  # type: ignore[no-any-return]


@torch.no_grad()
def test_the_map_of_a_network_that_averages_it() -> None:
    network = resnet()
    encoder = plain(network)
    images = torch.randn(2, 3, 64, 96)
    assert (encoder.embed_dim, encoder.cell, encoder.grid, encoder.multi_crop) == (512, 32, (1, 1), True)
    found = feature_map(encoder, images)
    assert found.shape == (2, 512, 2, 3)
    torch.testing.assert_close(found.mean((2, 3)), network(images))
    torch.testing.assert_close(encoder.features(images, ["features"])["features"], network(images))
    assert not network.avgpool._forward_pre_hooks, "nothing stays in the user's network"


@torch.no_grad()
def test_the_map_that_a_network_returns() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8))
    images = torch.randn(2, 3, 32, 48)
    encoder = plain(network)
    assert (encoder.cell, encoder.grid) == (4, (8, 8))
    torch.testing.assert_close(feature_map(encoder, images), network(images))
    torch.testing.assert_close(feature_map(encoder, images, (1,)), network(images))
    torch.testing.assert_close(encoder(images).cls, network(images).mean((2, 3)))


def test_without_a_map_there_is_nothing_dense() -> None:
    encoder = plain(OneSize(), 16)
    assert not encoder.has_map and not encoder.multi_crop and encoder.embed_dim == 6
    with pytest.raises(UserError, match="mine gives one vector an image"):
        feature_map(encoder, torch.zeros(1, 3, 16, 16))


def test_another_size_or_output_is_said_at_once() -> None:
    with pytest.raises(UserError, match=r"takes no images of 32 x 32 pixels \(RuntimeError"):
        plain(OneSize())
    with pytest.raises(UserError, match=r"returns \(1, 2, 32\) for 1 images"):
        plain(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(2), nn.Linear(32 * 32, 32)))


def test_all_weights_are_of_one_layer_below_the_head() -> None:
    encoder = plain(resnet())
    network = Network(encoder, 3, "mean", None, 0.0, 0.01)
    assert network.pooling == "features" and isinstance(network.norm, nn.Identity)
    groups = layer_groups(network, encoder, 0.05, 0.5)
    own = sum(p.numel() for p in encoder.parameters())
    counted: dict[float, int] = {}
    for group in groups:
        counted[group["lr_scale"]] = counted.get(group["lr_scale"], 0) + sum(p.numel() for p in group["params"])
    assert counted == {0.5: own, 1.0: 512 * 3 + 3}
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_dense_heads_on_it() -> None:
    encoder = plain(resnet(), 64)
    images = torch.randn(2, 3, 64, 64)
    assert UPerNet(copy.deepcopy(encoder), 4, 16)(images)[0].shape[1] == 4
    maps = Pyramid(copy.deepcopy(encoder), 16, frozen=False)(images)
    assert [each.shape[2] for each in maps.values()] == [8, 4, 2, 1, 1]


def test_a_copy_is_another_network() -> None:
    encoder = plain(resnet())
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    images = blobs(2, "train", 0).decoded
    assert images is not None
    x = images.float()
    assert other(x).cls.abs().sum() == 0 < encoder(x).cls.abs().sum()
    assert encoder.layer_ids.keys() == dict(encoder.named_parameters()).keys()

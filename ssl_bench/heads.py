"""What DINO and iBOT share besides their views: projection head, teacher, centre and the teacher's temperature."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbone import Backbone
from ssl_bench.nets import BatchNorm1d, all_mean, ema_update


class WeightNormLinear(nn.Module):
    """A linear layer without bias whose rows are g v / |v| (Salimans and Kingma 2016).

    The names are those of the official checkpoints. Unlike torch's older ``weight_norm`` it can be deep-copied.

    Args:
        in_dim: Input channels D.
        out_dim: Rows K.
        train_norm: Train the magnitudes g; otherwise they stay 1, so that rows are unit vectors.

    Example:
        >>> layer = WeightNormLinear(2, 2)
        >>> _ = layer.weight_v.data.copy_(torch.tensor([[3.0, 4.0], [1.0, -1.0]]))
        >>> [round(v, 4) for v in layer(torch.tensor([[0.6, 0.8]]))[0].tolist()]
        [1.0, -0.1414]
    """

    def __init__(self, in_dim: int, out_dim: int, *, train_norm: bool = False) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=train_norm)
        bound = in_dim**-0.5  # torch's default for linear layers
        self.weight_v = nn.Parameter(torch.empty(out_dim, in_dim).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., K)."""
        return F.linear(x, self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True)))


class DINOHead(nn.Module):
    """Projection head: three linear layers with GELU, L2 normalisation, weight-normalised last layer.

    Args:
        in_dim: Channels D of the backbone.
        hidden_dim: Width of the MLP.
        bottleneck_dim: Channels C in front of the last layer.
        out_dim: Outputs K.
        norm_last_layer: Freeze the magnitudes of the last layer at 1: outputs are cosines.
        batch_norm: Batch norm before each GELU.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        bottleneck_dim: int,
        out_dim: int,
        norm_last_layer: bool,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (in_dim, hidden_dim):
            norm = [BatchNorm1d(hidden_dim)] if batch_norm else []
            layers += [nn.Linear(width, hidden_dim), *norm, nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, bottleneck_dim))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = WeightNormLinear(bottleneck_dim, out_dim, train_norm=not norm_last_layer)

    def project(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., C) float32 unit vectors."""
        return F.normalize(self.mlp(x.flatten(0, -2)).float(), dim=-1).unflatten(0, x.shape[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., K)."""
        return self.last_layer(self.project(x))

    def freeze_last(self) -> None:
        """Drop the gradients of the last layers, so that the optimiser skips them, weight decay included."""
        for name, parameter in self.named_parameters():
            if name.startswith("last_layer"):
                parameter.grad = None


class IBOTHead(DINOHead):
    """DINO's head with a second last layer, for patches; when shared it is the first. The MLP always serves both."""

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        bottleneck_dim: int,
        out_dim: int,
        norm_last_layer: bool,
        shared: bool,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(in_dim, hidden_dim, bottleneck_dim, out_dim, norm_last_layer, batch_norm)
        own = WeightNormLinear(bottleneck_dim, out_dim, train_norm=not norm_last_layer)
        self.last_layer2 = self.last_layer if shared else own


class Teacher(nn.Module):
    """An average of past students: at first a copy, without drop path and mask token. Its names are the official ones.

    Args:
        backbone: The student's backbone.
        head: The student's head.
    """

    def __init__(self, backbone: Backbone, head: DINOHead) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.head: Any = copy.deepcopy(head)
        self.backbone.mask_token = None
        for module in self.backbone.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
        self.requires_grad_(False)

    def follow(self, backbone: Backbone, head: DINOHead, momentum: float) -> None:
        """The moving average. Parameters that the teacher lacks (mask token, an own last layer) don't matter to it."""
        ema_update(self, nn.ModuleDict({"backbone": backbone, "head": head}), momentum)


class Center(nn.Module):
    """The moving mean c of the teacher's logits, which keeps one output from winning everywhere.

    Args:
        out_dim: Outputs K.
        momentum: Of the mean.

    Example:
        >>> center = Center(3, 0.9)
        >>> center.update(torch.tensor([[0.0, 0.1, 0.0], [0.0, 0.3, 0.0]]))
        >>> [round(v, 4) for v in center.center[0].tolist()]
        [0.0, 0.02, 0.0]
    """

    def __init__(self, out_dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, out_dim))
        self.center: Tensor

    def sharpen(self, logits: Tensor, temperature: float) -> Tensor:
        """The teacher's distribution softmax((logits - c) / temperature): (..., K) -> (..., K) float32."""
        return ((logits.float() - self.center) / temperature).softmax(dim=-1)

    def update(self, logits: Tensor) -> None:
        """Move towards the mean of (..., K) logits of all processes, after they have been used."""
        self.center.lerp_(all_mean(logits.float().flatten(0, -2).mean(dim=0)), 1 - self.momentum)


def temperature_at(epoch: float, first: float, last: float, warmup: int) -> float:
    """The teacher's temperature: linear over the first ``warmup`` epochs, both ends included, constant in each epoch.

    Args:
        epoch: Fractional; ``first`` below 0.
        first: Temperature of epoch 0.
        last: Temperature from epoch ``warmup - 1`` on.
        warmup: Epochs; 0 = ``last`` from the start.

    Example:
        >>> [round(temperature_at(e, 0.04, 0.07, 3), 4) for e in (0, 1.9, 2, 3, 4)]
        [0.04, 0.055, 0.07, 0.07, 0.07]
    """
    if epoch >= warmup:
        return last
    return first + (last - first) * max(int(epoch), 0) / max(warmup - 1, 1)

"""How linear heads learn from random crops through a frozen encoder: the training of `probe.py`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.evaluations.evaluator import match_poolings
from ssl_bench.evaluations.heads import Heads, Transform
from ssl_bench.methods.method import Method
from ssl_bench.nn.batch_norm import BatchNorm1d
from ssl_bench.nn.optimizers import Training
from ssl_bench.nn.schedules import warmup_cosine
from ssl_bench.utils.distributed import all_mean, process
from ssl_bench.views.view import View

FORWARD = 256  # images a forward pass: nothing is kept for a backward pass, so a step may have any number of them


class Probing(Method):
    """A frozen encoder and two grids of heads for each pooling: one learns from the fit images, one from all.

    Args:
        network: The encoder; frozen here.
        parts: The poolings, and what each is joined from.
        choosing: Pooling -> the heads that learn from the fit images, to be compared on dev.
        reporting: Pooling -> the heads that learn from all training images.
        grid: Multiple of the learning rate, and weight decay, of each head of a grid.
        is_fit: (N,) bool, which training images are fit images.
        training_config: The training.
        view: The crop.
        by_epoch: Hold the learning rate through an epoch.
        seed: Seed of the order of images and the crops.
    """

    paper = "none"
    category = "probe"
    uses_labels = True
    is_fit: Tensor

    def __init__(
        self,
        network: Any,
        *,
        parts: Mapping[str, tuple[str, ...]],
        choosing: Mapping[str, HeadGrid],
        reporting: Mapping[str, HeadGrid],
        grid: Sequence[tuple[float, float]],
        is_fit: Tensor,
        training_config: Training,
        view: View,
        by_epoch: bool,
        seed: int,
    ) -> None:
        super().__init__(network.requires_grad_(False))
        self.choosing, self.reporting = nn.ModuleDict(choosing), nn.ModuleDict(reporting)
        self.parts, self.grid, self.view = parts, grid, view
        self.training_config, self.by_epoch, self.seed = training_config, by_epoch, seed
        self.register_buffer("is_fit", is_fit, persistent=False)
        self.fit_rows: Tensor | slice = slice(None)  # of the batch; all of them while the cost is measured

    @classmethod
    def needed(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Features are all it takes: the network is frozen."""
        return ()

    @property
    def views(self) -> list[View]:
        """One crop."""
        return [self.view]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """The sum of the cross-entropies of all heads; its value, for the log, is that of the best head alone."""
        (images,) = views
        features = self.encode(images)
        losses = []
        for head_grids, rows in ((self.choosing, self.fit_rows), (self.reporting, slice(None))):
            assert self.labels is not None
            labels = self.labels[rows]
            # A process counts with its rows, of which it may have none: the mean of its losses over the processes is
            # that over the joint rows.
            count = float(all_mean(torch.full((), float(len(labels)), device=images.device)))
            for pooling, head_grid in head_grids.items():
                if count * process()[1] < (2 if isinstance(head_grid.norm, nn.BatchNorm1d) else 1):
                    continue
                with torch.autocast(images.device.type, enabled=False):
                    scores = head_grid(features[pooling][rows])  # (B, C, H)
                truth = labels[:, None].expand(-1, scores.shape[2])
                each = F.cross_entropy(scores, truth, reduction="none")
                losses.append(each.mean(0) if process()[1] == 1 else each.sum(0) / count)
        each = torch.cat(losses).double()  # float64 holds the sum of any float32
        best, total = all_mean(each).nan_to_num(math.inf).min(), each.nan_to_num(0.0, 0.0, 0.0).sum()
        return {"loss": best + (total - total.detach())}

    @torch.no_grad()
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> pooling -> (B, D) float32."""
        names, network = needed(self.parts), self.backbone
        found = [network.features(piece, names) for piece in images.split(FORWARD)]
        return join({name: torch.cat([piece[name] for piece in found]) for name in names}, self.parts)

    def param_groups(self) -> list[dict[str, Any]]:
        """The weights and the biases of each setting of the grid."""
        head_grids: list[Any] = [*self.choosing.values(), *self.reporting.values()]
        groups: list[dict[str, Any]] = []
        for head, (lr, decay) in enumerate(self.grid):
            groups.append({"params": [b.weights[head] for b in head_grids], "lr_scale": lr, "weight_decay": decay})
            groups.append({"params": [b.biases[head] for b in head_grids], "lr_scale": lr, "weight_decay": 0.0})
        return groups

    def learning_rate(self, step: int, steps: int) -> float:
        """Held through an epoch where the protocol does."""
        if not self.by_epoch:
            return super().learning_rate(step, steps)
        config = self.training_config
        return warmup_cosine(int(step * config.epochs / steps), config.lr, config.warmup_epochs, config.epochs)

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Find the fit images of the batch."""
        super().on_train_batch_start(batch, batch_idx)
        self.fit_rows = self.is_fit[batch["index"]]

    def train(self, mode: bool = True) -> Probing:
        """The encoder stays in eval mode: no drop path."""
        super().train(mode)
        self.backbone.eval()
        return self


class HeadGrid(nn.Module):
    """H linear heads in training on the same features, and the BatchNorm before them.

    All start from the same weights, so that a head does not depend on the others of its sweep.

    Args:
        dim: D.
        classes: C.
        count: H.
        batch_norm: Put one in front.
        std: Standard deviation of the initial weights; biases start at 0.
        seed: Seed of the initial weights.
    """

    def __init__(self, dim: int, classes: int, count: int, *, batch_norm: bool, std: float, seed: int) -> None:
        super().__init__()
        start = std * torch.randn(classes, dim, generator=torch.Generator().manual_seed(seed))
        self.weights = nn.ParameterList([start.clone() for _ in range(count)])
        self.biases = nn.ParameterList([torch.zeros(classes) for _ in range(count)])
        self.norm = BatchNorm1d(dim, eps=1e-6, affine=False) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, C, H), by one product; a softmax along strided classes is faster than along short rows."""
        weight, bias = torch.stack(list(self.weights), 1), torch.stack(list(self.biases), 1)  # (C, H, D), (C, H)
        return F.linear(self.norm(x), weight.flatten(0, 1), bias.flatten()).unflatten(1, bias.shape)

    @torch.no_grad()
    def heads(self, which: Sequence[int]) -> Heads:
        """Some of the heads, as they classify centre crops: with the running statistics of the BatchNorm."""
        weight = torch.stack([self.weights[head].T for head in which])
        bias = torch.stack([self.biases[head] for head in which])
        transform = Transform(False, 0.0, 1.0)
        if isinstance(self.norm, nn.BatchNorm1d):
            assert self.norm.running_mean is not None and self.norm.running_var is not None
            transform = Transform(False, self.norm.running_mean, (self.norm.running_var + self.norm.eps).rsqrt())
        return Heads(transform, weight, bias)


def parts_of(wanted: Sequence[str], offered: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The wanted poolings that can be had, and what each is joined from.

    An encoder with only one kind of feature gives that.

    Args:
        wanted: Offered ones; several joined by "+"; "layers" for all of the kind "layer=k".
        offered: By the encoder.

    Raises:
        UserError: None can be had and there is more than one to choose from.

    Example:
        >>> parts_of(("cls+mean", "last4+mean", "layers"), ("mean", "cls+mean", "last4", "layer=1"))
        {'cls+mean': ('cls+mean',), 'last4+mean': ('last4', 'mean'), 'layer=1': ('layer=1',)}
    """
    layers = [name for name in offered if name.startswith("layer=")]
    names = [name for pooling in wanted for name in (layers if pooling == "layers" else [pooling])]
    parts = {name: (name,) if name in offered else tuple(name.split("+")) for name in names}
    found = {name: of for name, of in parts.items() if all(part in offered for part in of)}
    return found or {name: (name,) for name in match_poolings(wanted, offered)}


def needed(parts: Mapping[str, tuple[str, ...]]) -> list[str]:
    """What to ask the encoder for, each once."""
    return list(dict.fromkeys(itertools.chain(*parts.values())))


def join(found: Mapping[str, Tensor], parts: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """Poolings (N, D) from what the encoder gave; the parts stand one after the other."""
    return {  # torch.cat would copy a single part, which may be a mapped file
        name: found[of[0]] if len(of) == 1 else torch.cat([found[part] for part in of], dim=1)
        for name, of in parts.items()
    }

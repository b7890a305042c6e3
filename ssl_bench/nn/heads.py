"""Heads behind a backbone: the MLPs of the contrastive methods, and the projection heads of DINO and iBOT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.nn.batch_norm import BatchNorm1d


def mlp(dims: Sequence[int], *, bias: bool = True, last_norm: bool = False) -> nn.Sequential:
    """Linear - BN - ReLU, repeated, ending in a Linear: the projector and predictor of the contrastive methods.

    Args:
        dims: Widths, input first: ``[384, 4096, 4096, 256]`` is a 3-layer projector.
        bias: Whether the linear layers have one.
        last_norm: End with a batch norm without affine parameters (MoCo v3, ``builder.py``).
    """
    layers: list[nn.Module] = []
    for i, (d_in, d_out) in enumerate(pairwise(dims)):
        layers.append(nn.Linear(d_in, d_out, bias=bias))
        if i < len(dims) - 2:
            layers += [BatchNorm1d(d_out), nn.ReLU(inplace=True)]
        elif last_norm:
            layers.append(BatchNorm1d(d_out, affine=False))
    return nn.Sequential(*layers)


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


class LateLinear(nn.Module):
    """A linear layer whose width is known later: that of a teacher, or of a file that is loaded.

    Args:
        in_dim: Input channels D.

    Example:
        >>> head = LateLinear(4)
        >>> head.make(6, nn.init.xavier_normal_, seed=0)
        >>> head(torch.zeros(2, 4)).shape
        torch.Size([2, 6])
    """

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.weight: nn.Parameter | None
        self.bias: nn.Parameter | None
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)

    def make(self, out_dim: int, init: Callable[..., Any], seed: int) -> None:
        """Give it its weights; the bias is 0.

        Args:
            out_dim: Output channels.
            init: Fills the weight in place; takes a ``generator``.
            seed: Of a generator of the layer's own: what the making of a teacher draws must not change its weights.
        """
        self.weight = nn.Parameter(torch.empty(out_dim, self.in_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        init(self.weight, generator=torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., out_dim)."""
        assert self.weight is not None, "make comes first"
        return F.linear(x, self.weight, self.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.weight is None and f"{prefix}weight" in state_dict:
            self.make(len(state_dict[f"{prefix}weight"]), nn.init.xavier_normal_, 0)
        super()._load_from_state_dict(state_dict, prefix, *args)


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
    """DINO's head with a second last layer, for patches; when shared it is the first. The MLP always serves both.

    With ``batch_norm`` both layers of the MLP have the same batch norm, module and running statistics, as in the
    official head (``models/head.py``), which builds one.
    """

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
        self.batch_norm = batch_norm
        if batch_norm:
            self.mlp[4] = self.mlp[1]
        own = WeightNormLinear(bottleneck_dim, out_dim, train_norm=not norm_last_layer)
        self.last_layer2 = self.last_layer if shared else own

    def of_images(self, backbone: Any, images: Tensor) -> Tensor:
        """Logits of the cls tokens of images. Batch norm counts all tokens; without it patches don't matter.

        Args:
            backbone: A ``Backbone``.
            images: (N, 3, H, W).

        Returns:
            (N, K).
        """
        if self.batch_norm:
            return self.last_layer(self.project_all(*backbone(images))[:, 0])
        return self(backbone.class_token(images))

    def of_image_and_masked(self, cls: Tensor, patches: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the cls tokens, and of the masked patches alone, because the others have no loss.

        Args:
            cls: (N, D).
            patches: (N, L, D) of the same images.
            mask: (N, L) bool with M True.

        Returns:
            (N, K) and (M, K), image by image.
        """
        if not self.batch_norm:
            return self(cls), self.last_layer2(self.project(patches[mask]))
        tokens = self.project_all(cls, patches)
        return self.last_layer(tokens[:, 0]), self.last_layer2(tokens[:, 1:][mask])

    def project_all(self, cls: Tensor, patches: Tensor) -> Tensor:
        """(N, D) and (N, L, D) -> (N, 1 + L, C) float32 unit vectors."""
        return self.project(torch.cat([cls[:, None], patches], dim=1))

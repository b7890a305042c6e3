"""VQ-KD, BEiT v2's tokenizer: a vision transformer whose patch tokens are rounded to codes (Peng et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones import build_backbone
from ssl_bench.backbones.backbone import RGB, Backbone
from ssl_bench.utils.bounds import Share, Width
from ssl_bench.utils.distributed import all_mean, gather, process

KMEANS_ITERATIONS = 10  # ``norm_ema_quantizer.py``


class VQKDTokenizer(nn.Module):
    """From images to a grid of codes. The keys are the authors'.

    Args:
        encoder: Gives a token for each patch; without layer scale and with learned positions in the paper.
        codebook_size: Codes.
        code_dim: Their dimension.
        decay: Of the codebook's moving average.

    Attributes:
        stride: Pixels of a token's side.
    """

    def __init__(self, encoder: Backbone, *, codebook_size: Width = 8192, code_dim: Width = 32, decay: Share = 0.99):
        super().__init__()
        dim = encoder.embed_dim
        self.encoder = encoder
        self.encode_task_layer = task_layer(dim, code_dim)
        self.quantize = Quantizer(codebook_size, code_dim, decay)
        self.name, self.image_size, self.stride = f"vqkd_{encoder.name}", encoder.image_size, encoder.stages[-1].stride
        self.codebook_size, self.embed_dim, self.poolings = codebook_size, dim, encoder.poolings

    @property
    def mean(self) -> RGB:
        """Of the encoder's input."""
        return self.encoder.mean

    @mean.setter
    def mean(self, value: RGB) -> None:
        self.encoder.mean = value

    @property
    def std(self) -> RGB:
        """Of the encoder's input."""
        return self.encoder.std

    @std.setter
    def std(self, value: RGB) -> None:
        self.encoder.std = value

    @property
    def spec(self) -> dict[str, Any]:
        """What ``build_vqkd`` makes a tokenizer of this shape from."""
        codes, dim = self.quantize.weight.shape
        return {**self.encoder.spec, "name": self.name, "codebook_size": codes, "code_dim": dim}

    def project(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), normalised -> (B, L, code_dim) float32 unit vectors, which are rounded to codes."""
        return F.normalize(self.encode_task_layer(self.encoder(images).patches).float(), dim=2)

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """The nearest codes, computed in float32.

        Args:
            images: (B, 3, H, W) float in [0, 1], sides that are multiples of the stride.

        Returns:
            (B, H / stride, W / stride) int64.
        """
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        with torch.autocast(images.device.type, enabled=False):
            ids = self.quantize.nearest(self.project((images.float() - mean) / std))
        return ids.unflatten(1, self.encoder.grid_of((images.shape[2], images.shape[3])))

    def features(self, images: Tensor, poolings: Sequence[str]) -> dict[str, Tensor]:
        """The encoder's, for the online k-NN."""
        return self.encoder.features(images, poolings)


def task_layer(dim: int, out: int, generator: torch.Generator | None = None) -> nn.Sequential:
    """Two linear layers with a tanh between them, D -> D -> out, at the authors' initial weights."""
    layers = nn.Linear(dim, dim), nn.Linear(dim, out)
    for layer in layers:
        nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1])


class Quantizer(nn.Module):
    """A codebook of unit vectors that follows, by a moving average, what is rounded to it (``norm_ema_quantizer.py``).

    Args:
        codes: Codes K.
        dim: Their dimension C.
        decay: Of the moving averages.
    """

    def __init__(self, codes: int, dim: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("weight", F.normalize(torch.randn(codes, dim), dim=1))
        self.register_buffer("cluster_size", torch.zeros(codes))
        self.weight: Tensor
        self.cluster_size: Tensor  # moving average of how many vectors of a batch take each code

    def nearest(self, z: Tensor) -> Tensor:
        """The code of each unit vector: (..., C) float32 -> (...) int64."""
        return (z @ self.weight.T).argmax(dim=-1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Round unit vectors to codes.

        Args:
            z: (..., C) float32.

        Returns:
            The codes' vectors (..., C), with the gradient of ``z`` straight through; ids (...) int64; and the
            commitment loss, the mean squared distance of ``z`` from its code.
        """
        ids = self.nearest(z)
        rounded = self.weight[ids]
        return z + (rounded - z).detach(), ids, F.mse_loss(z, rounded)

    @torch.no_grad()
    def follow(self, z: Tensor, ids: Tensor) -> None:
        """Move each code towards the mean direction of the vectors of all processes that took it; others stay.

        Args:
            z: (N, C) float32 unit vectors of this process.
            ids: (N,) int64, their codes.
        """
        _, world = process()
        counts, sums = (world * all_mean(x) for x in members(z, ids, len(self.weight)))
        self.cluster_size.lerp_(counts, 1 - self.decay)
        moved = F.normalize(torch.lerp(self.weight, F.normalize(sums, dim=1), 1 - self.decay), dim=1)
        self.weight.copy_(torch.where(counts[:, None] > 0, moved, self.weight))

    @torch.no_grad()
    def start(self, z: Tensor, draws: Tensor) -> None:
        """Take as codes the centres of a spherical k-means of the vectors of all processes.

        Args:
            z: (N, C) float32 unit vectors of this process.
            draws: (N,) uniform draws: the vectors with the smallest ones are the first centres.
        """
        z, codes = gather(z), len(self.weight)
        first = gather(draws).argsort()
        centers = z[first[torch.arange(codes, device=z.device) % len(z)]]
        for _ in range(KMEANS_ITERATIONS):
            counts, sums = members(z, (z @ centers.T).argmax(dim=1), codes)
            centers = torch.where(counts[:, None] > 0, F.normalize(sums, dim=1), centers)
        self.weight.copy_(centers)
        self.cluster_size.copy_(counts)


def members(z: Tensor, ids: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """How many vectors took each code, and their sum.

    Args:
        z: (N, C) float32.
        ids: (N,) int64.
        codes: K.

    Returns:
        (K,) and (K, C) float32.

    Example:
        >>> members(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]]), torch.tensor([2, 0, 0]), 3)[1].tolist()
        [[0.0, 3.0], [0.0, 0.0], [1.0, 0.0]]
    """
    counts = z.new_zeros(codes).index_add_(0, ids, z.new_ones(len(z)))
    return counts, z.new_zeros(codes, z.shape[1]).index_add_(0, ids, z)


def build_vqkd(name: str, *, codebook_size: Width, code_dim: Width, **backbone_options: Any) -> VQKDTokenizer:
    """The tokenizer that an encoder file describes: ``vqkd_BACKBONE``, its codebook, and the backbone's options."""
    backbone = build_backbone(name.removeprefix("vqkd_"), **backbone_options)
    return VQKDTokenizer(backbone, codebook_size=codebook_size, code_dim=code_dim)

"""Parts of networks and of their optimisation that two or more methods share, and that authors outside may build on."""

from __future__ import annotations

from ssl_bench.nn.batch_norm import BatchNorm1d
from ssl_bench.nn.centering import Center, temperature_at
from ssl_bench.nn.ema import EMATeacher, ema_update
from ssl_bench.nn.heads import DINOHead, IBOTHead, WeightNormLinear, mlp
from ssl_bench.nn.masking import block_masking, masked_mean, random_masking
from ssl_bench.nn.optimizers import LARS, no_decay_on_vectors
from ssl_bench.nn.schedules import cosine, warmup_cosine
from ssl_bench.utils.distributed import all_mean, gather, gather_with_gradient, process

__all__ = [
    "LARS",
    "BatchNorm1d",
    "Center",
    "DINOHead",
    "EMATeacher",
    "IBOTHead",
    "WeightNormLinear",
    "all_mean",
    "block_masking",
    "cosine",
    "ema_update",
    "gather",
    "gather_with_gradient",
    "masked_mean",
    "mlp",
    "no_decay_on_vectors",
    "process",
    "random_masking",
    "temperature_at",
    "warmup_cosine",
]

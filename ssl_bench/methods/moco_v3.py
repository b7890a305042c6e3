"""An Empirical Study of Training Self-Supervised Vision Transformers. Chen, Xie, He, ICCV 2021, arXiv 2104.02057."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.method import Method
from ssl_bench.nn.ema import ema_update
from ssl_bench.nn.heads import mlp
from ssl_bench.nn.optimizers import Training
from ssl_bench.nn.schedules import cosine
from ssl_bench.utils.bounds import Area, Positive, Share, Sigma, Width
from ssl_bench.utils.distributed import gather, process
from ssl_bench.views.view import PIL_DIFFERENCES, View, byol_pair, random_resized_crop


class MoCoV3(Method):
    """Match each view of an image to the momentum encoder's other view, against all other images of the batch.

    loss = ctr(q1, k2) + ctr(q2, k1),  ctr(q, k) = 2 T CE(q k' / T, diagonal)

    Args:
        backbone: The base encoder.
        hidden_dim: Width of the projector and predictor (section 3).
        out_dim: Dimension of the queries and keys.
        temperature: T (``CONFIG.md``).
        momentum: Momentum of the key encoder at the start; a cosine takes it to 1 (``CONFIG.md``).
        freeze_patch_embed: Keep the random patch projection, the paper's remedy for instability (section 4.2).
        crop_min: Smallest area of the crops (``CONFIG.md``).
        blur_sigma: Range of the blur, pixels of the view. The paper's (0.1, 2.0) is for 224 pixels.
    """

    paper = "Chen, Xie, He 2021, arXiv 2104.02057"
    category = "contrastive"
    defaults = Training(  # section 4.1 and CONFIG.md: ViT-S and ViT-B, 300 epochs
        epochs=300, batch_size=4096, base_lr=1.5e-4, warmup_epochs=40, weight_decay=0.1, betas=(0.9, 0.999)
    )
    backbone_options = {"pos_embed": "sincos_yx", "init": "moco_v3"}
    deviations = (
        *PIL_DIFFERENCES,
        "mixed precision, where a recipe has it, is bf16; the authors' is fp16 with a loss scaler",
        "ViT-S has DeiT's 6 attention heads unless a recipe says num_heads 12, as the paper's recipe here does",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden_dim: Width = 4096,
        out_dim: Width = 256,
        temperature: Positive = 0.2,
        momentum: Share = 0.99,
        freeze_patch_embed: bool = True,
        crop_min: Area = 0.08,
        blur_sigma: tuple[Sigma, Sigma] = (0.1, 2.0),
    ) -> None:
        super().__init__(backbone)
        self.temperature, self.momentum, self.crop_min = temperature, momentum, crop_min
        self.blur_sigma = blur_sigma
        if freeze_patch_embed:
            backbone.freeze_patch_embed()
        self.projector = mlp([backbone.embed_dim, hidden_dim, hidden_dim, out_dim], bias=False, last_norm=True)
        self.predictor = mlp([out_dim, hidden_dim, out_dim], bias=False, last_norm=True)
        self.momentum_encoder = copy.deepcopy(nn.ModuleList([backbone, self.projector])).requires_grad_(False)

    @property
    def views(self) -> list[View]:
        """The asymmetric pair (BYOL's)."""
        size, smallest, sigma = self.backbone.image_size, self.crop_min, self.blur_sigma
        return byol_pair(random_resized_crop(size, smallest, interpolation="bilinear", blur_sigma=sigma))

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Symmetric InfoNCE (algorithm 1). The momentum encoder moves between the queries and the keys."""
        x1, x2 = views
        q1, q2 = self.query(x1), self.query(x2)
        with torch.no_grad():
            ema_update(self.momentum_encoder, nn.ModuleList([self.backbone, self.projector]), self.current_momentum)
            k1, k2 = gather(self.key(x1)), gather(self.key(x2))
        rank, _ = process()
        loss = contrastive_loss(q1, k2, self.temperature, rank) + contrastive_loss(q2, k1, self.temperature, rank)
        return {"loss": loss}

    def query(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, out_dim)."""
        return self.predictor(self.projector(self.backbone.class_token(x)))

    def key(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, out_dim), from the momentum encoder, which stays in train mode."""
        encoder: Any
        encoder, projector = self.momentum_encoder
        return projector(encoder.class_token(x))

    @property
    def current_momentum(self) -> float:
        """Cosine from ``momentum`` to 1 over the training (``main_moco.py``, --moco-m-cos)."""
        return cosine(self.progress, self.momentum, 1.0)

    def param_groups(self) -> list[dict[str, Any]]:
        """Weight decay on every trainable tensor, biases, norms and cls token included (``main_moco.py``)."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]


def contrastive_loss(q: Tensor, k: Tensor, temperature: float, rank: int = 0) -> Tensor:
    """2 T times the cross-entropy of each query against all keys; 2 T keeps the gradient's scale (section 3).

    Args:
        q: (N, C) queries of this process.
        k: (N * W, C) keys of all W processes in rank order.
        temperature: T.
        rank: This process; its first key is number N * rank.

    Example:
        >>> round(contrastive_loss(torch.eye(4), torch.eye(4), 0.2).item(), 6)
        0.008005
    """
    logits = F.normalize(q.float(), dim=1) @ F.normalize(k.float(), dim=1).T / temperature
    target = torch.arange(len(q), device=q.device) + len(q) * rank
    return 2 * temperature * F.cross_entropy(logits, target)

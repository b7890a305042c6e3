"""SimCLR (Chen et al. 2020, arXiv 2002.05709): a whole method in one file, outside the package.

    ssl-bench bench quick --methods examples/simclr.py:SimCLR

loss = CE over the 2N views: each view against its partner and the other 2N - 2 views (NT-Xent)
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_bench import Backbone, Method, View
from ssl_bench.nn import mlp


class SimCLR(Method):
    """Contrast two views of each image, without a momentum encoder.

    Args:
        backbone: The encoder.
        temperature: Of the softmax; the paper's best for long training is 0.1.
        hidden_dim: Width of the projector.
        blur_sigma: Range of the blur, pixels of the view; the paper's (0.1, 2.0) is for 224 pixels.
    """

    paper = "Chen et al. 2020, arXiv 2002.05709"
    category = "contrastive"
    deviations = ("one process contrasts its own batch only: no gather with gradient",)

    def __init__(
        self,
        backbone: Backbone,
        *,
        temperature: float = 0.2,
        hidden_dim: int = 512,
        blur_sigma: tuple[float, float] = (0.1, 0.5),
    ) -> None:
        super().__init__(backbone)
        self.temperature, self.blur_sigma = temperature, blur_sigma
        self.projector = mlp([backbone.embed_dim, hidden_dim, 128])

    @property
    def views(self) -> list[View]:
        view = View(self.backbone.image_size, scale=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, count=2)
        return [replace(view, grayscale=0.2, blur=0.5, blur_sigma=self.blur_sigma)]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        z = F.normalize(self.projector(self.backbone(torch.cat(views)).cls).float(), dim=1)
        logits = z @ z.T / self.temperature
        logits.fill_diagonal_(float("-inf"))  # never itself
        partner = torch.arange(len(z), device=z.device).roll(len(z) // 2)
        return {"loss": F.cross_entropy(logits, partner)}

"""VICReg (Bardes, Ponce, LeCun 2022, arXiv 2105.04906): a whole method in one file, outside the package.

    ssl-bench bench quick --methods examples/vicreg.py:VICReg

loss = 25 |z1 - z2|^2 + 25 [v(z1) + v(z2)] / 2 + c(z1) + c(z2),  v: 1 - std where positive,  c: squared covariances
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_bench import Backbone, Method, View
from ssl_bench.nn import gather_with_gradient, mlp


class VICReg(Method):
    """Equal features for two views of an image, each dimension spread out and none correlated with another.

    Args:
        weights: Of invariance, variance and covariance; the paper's.
        hidden_dim: Width of the three layers of the expander; 8192 in the paper.
        blur_sigma: Range of the blur, pixels of the view; the paper's (0.1, 2.0) is for 224 pixels.
    """

    paper = "Bardes, Ponce, LeCun 2022, arXiv 2105.04906"
    category = "contrastive"
    deviations = ("an expander of width 512 instead of 8192", "AdamW instead of LARS")
    recipes = {"short": {"epochs": 1, "warmup_epochs": 0, "batch_size": 64}}  # examples/vicreg.py:VICReg:short

    def __init__(
        self,
        backbone: Backbone,
        *,
        weights: tuple[float, float, float] = (25.0, 25.0, 1.0),
        hidden_dim: int = 512,
        blur_sigma: tuple[float, float] = (0.1, 0.5),
    ) -> None:
        super().__init__(backbone)
        self.weights, self.blur_sigma = weights, blur_sigma
        self.expander = mlp([backbone.embed_dim, hidden_dim, hidden_dim, hidden_dim])

    @property
    def views(self) -> list[View]:
        view = View(self.backbone.image_size, scale=(0.08, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, count=2)
        return [replace(view, grayscale=0.2, blur=0.5, solarize=0.1, blur_sigma=self.blur_sigma)]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        both = self.expander(self.backbone.class_token(torch.cat(views))).float().chunk(2)
        z1, z2 = (gather_with_gradient(z) for z in both)  # the joint batch of all processes
        loss = self.weights[0] * F.mse_loss(z1, z2)
        for z in (z1 - z1.mean(dim=0), z2 - z2.mean(dim=0)):
            covariance = z.T @ z / (len(z) - 1)
            spread = (1 - (covariance.diag() + 1e-4).sqrt()).relu().mean()
            correlation = (covariance - covariance.diag().diag()).square().sum() / z.shape[1]
            loss = loss + self.weights[1] * spread / 2 + self.weights[2] * correlation
        return {"loss": loss}

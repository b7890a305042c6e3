"""iGPT: Generative Pretraining from Pixels. Chen et al., ICML 2020."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.backbones.palette import COLORS
from ssl_bench.methods.method import Method
from ssl_bench.nn.optimizers import Training
from ssl_bench.utils.bounds import Area, OpenShare
from ssl_bench.views.evaluation import normalize
from ssl_bench.views.view import View


class IGPT(Method):
    """Predict the colours of an image, one after the other, or those that are masked.

    The backbone's ``objective`` says which. ar: loss = mean over the places of CE(head(token), colour), where a token
    has seen the colours before its place. bert: loss = mean over images of the mean over masked places of the same.

    Args:
        backbone: The transformer, with its palette.
        mask_ratio: Probability with which each place is masked, bert alone (section 3.1).
        crop_min: Smallest area of the crop: a square of 224 pixels of a shorter side of 384 (section 3.2).
        crop_max: Largest area of the crop: of a shorter side of 256.
    """

    paper = "Chen et al. 2020, ICML 2020"
    category = "token prediction"
    defaults = Training(  # section 3.3: a million steps; the rate is that of iGPT-S
        epochs=100, batch_size=128, base_lr=6e-3, warmup_epochs=1, weight_decay=0.0, betas=(0.9, 0.95)
    )
    needs = ("palette",)
    deviations = (
        "the palette is fitted to the suite's training images; the authors' to ImageNet",
        "an image is made smaller by averaging P x P pixels of the backbone's image; the paper does not say how",
        "the crop is a square of 34 to 77 % of the area, which is the paper's of a square image",
        "the learning rate is a recipe's; the paper takes the largest of a grid that trains",
        "mixed precision, where a recipe has it, is bf16; the authors' is not stated",
    )

    def __init__(
        self, backbone: Backbone, *, mask_ratio: OpenShare = 0.15, crop_min: Area = 0.34, crop_max: Area = 0.77
    ) -> None:
        super().__init__(backbone)
        self.mask_ratio, self.crop_min, self.crop_max = mask_ratio, crop_min, crop_max
        self.head = nn.Linear(backbone.embed_dim, COLORS, bias=False)  # of its own: not the embeddings again
        nn.init.zeros_(self.head.weight)

    @property
    def network(self) -> Any:
        """The backbone, which has colours and can run on them."""
        return self.backbone

    @property
    def views(self) -> list[View]:
        """One square crop, neither flipped nor coloured."""
        scale = (self.crop_min, self.crop_max)
        return [View(self.backbone.image_size, scale=scale, ratio=(1.0, 1.0), flip=0.0)]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Cross-entropy in nats a place (section 2.1)."""
        (images,) = views
        mask = None if self.network.objective == "ar" else self.masks(len(images))
        logits = self.head(self.backbone(images, mask=mask).patches).float()  # counted as encoded, which encode is not
        return {"loss": prediction_loss(logits, self.network.tokens(images), mask)}

    def logits(self, colors: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L) int64 -> (B, L, 512) float32."""
        return self.head(self.network.encode(colors, mask)[0]).float()

    def masks(self, batch: int) -> Tensor:
        """(B, L) bool, each place independently."""
        return self.uniform(batch, self.backbone.grid[0] * self.backbone.grid[1]) < self.mask_ratio

    def show(self, images: Tensor) -> dict[str, Tensor]:
        """The image through its palette; ar: its upper half, completed, and a sample; bert: masked, and predicted."""
        network = self.network
        colors = network.tokens(normalize(images, self.drawn_views[0]))
        seen = network.colors(colors)
        if network.objective == "bert":
            mask = self.masks(len(images))
            predicted = torch.where(mask, self.logits(colors, mask).argmax(dim=2), colors)
            return {"palette": seen, "masked": self._hidden(seen, mask), "predicted": network.colors(predicted)}
        half = self.backbone.grid[0] // 2 * self.backbone.grid[1]
        mask = (torch.arange(colors.shape[1], device=colors.device) >= half).expand_as(colors)
        return {
            "palette": seen,
            "upper half": self._hidden(seen, mask),
            "completed": network.colors(self.complete(colors[:, :half])),
            "sample": network.colors(self.complete(colors[:, :0])),
        }

    def _hidden(self, images: Tensor, mask: Tensor) -> Tensor:
        at = mask.view(-1, 1, *self.backbone.grid).float()
        return torch.lerp(images, torch.full_like(images, 0.5), F.interpolate(at, images.shape[-2:]))

    @torch.no_grad()
    def complete(self, colors: Tensor) -> Tensor:
        """Draw the colours that follow, each from the predicted distribution (temperature 1).

        Args:
            colors: (B, n) int64, the first places; n may be 0.

        Returns:
            (B, L) int64.
        """
        places = self.backbone.grid[0] * self.backbone.grid[1]
        noise = self.uniform(len(colors), places)
        past: list[tuple[Tensor, ...]] = [()] * self.backbone.depth
        new = F.pad(colors, (0, 1))
        for place in range(colors.shape[1], places):
            logits = self.head(self.network.encode(new, past=past)[0][:, -1]).float()
            below = logits.softmax(dim=1).cumsum(dim=1) < noise[:, place, None]
            new = below.sum(dim=1, keepdim=True).clamp(max=COLORS - 1)
            colors = torch.cat([colors, new], dim=1)
        return colors


def prediction_loss(logits: Tensor, colors: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over all places; with a mask over an image's masked places, then over images.

    Args:
        logits: (B, L, V) float32.
        colors: (B, L) int64 in [0, V).
        mask: (B, L) bool; an image without a masked place counts as 0.

    Example:
        >>> logits = torch.tensor([[[1.0, 2, 0], [0, 0, 0], [3, 1, 2]], [[0, 1, 0], [2, 0, 1], [1, 1, 1]]])
        >>> colors, mask = torch.tensor([[1, 0, 2], [0, 0, 1]]), torch.tensor([[1, 0, 1], [0, 1, 0]]).bool()
        >>> round(prediction_loss(logits, colors).item(), 5), round(prediction_loss(logits, colors, mask).item(), 5)
        (0.99525, 0.65761)
    """
    each = F.cross_entropy(logits.transpose(1, 2), colors, reduction="none")
    if mask is None:
        return each.mean()
    return ((each * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()

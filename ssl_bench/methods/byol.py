"""Bootstrap Your Own Latent. Grill, Strub, Altché, Tallec, Richemond et al., NeurIPS 2020, arXiv 2006.07733."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.method import Method
from ssl_bench.nn.ema import EMATeacher
from ssl_bench.nn.heads import mlp
from ssl_bench.nn.optimizers import Training
from ssl_bench.nn.schedules import cosine
from ssl_bench.utils.bounds import Area, Share, Sigma, Width
from ssl_bench.views.view import PIL_DIFFERENCES, View, byol_pair, random_resized_crop


class BYOL(Method):
    """Predict, from one view of an image, the projection that an average of past networks gives the other view.

    loss = l(p1, z2) + l(p2, z1),  l(p, z) = 2 - 2 cos(p, z);  p: prediction online, z: projection of the target network

    Args:
        backbone: The online encoder.
        hidden_dim: Width of the projector and predictor (section 3.3).
        out_dim: Dimension of projections and predictions.
        momentum: Momentum of the target network at the start; a cosine takes it to 1 (section 3.3; the authors have
            0.99 for 100 and 300 epochs).
        freeze_patch_embed: Keep the random patch projection: MoCo v3's remedy for the instability of ViTs, which helps
            BYOL too (arXiv 2104.02057, section 4.2).
        crop_min: Smallest area of the crops (appendix B).
        blur_sigma: Range of the blur, pixels of the view. The paper's (0.1, 2.0) is for 224 pixels.
    """

    paper = "Grill et al. 2020, arXiv 2006.07733"
    category = "self-distillation"
    defaults = (
        Training(  # MoCo v3's harness for ViTs, with the lower rate and decay that BYOL takes; ResNets in the paper
            epochs=300, batch_size=4096, base_lr=1e-4, warmup_epochs=40, weight_decay=0.03
        )
    )
    backbone_options = {"pos_embed": "sincos_yx", "init": "moco_v3"}
    deviations = (
        *PIL_DIFFERENCES,
        "the backbone is a ViT with MoCo v3's initial weights, fixed positions and frozen patch projection; the "
        "paper's is a ResNet",
        "AdamW at rates for ViTs instead of LARS; as in the paper, biases and norms have no weight decay",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden_dim: Width = 4096,
        out_dim: Width = 256,
        momentum: Share = 0.996,
        freeze_patch_embed: bool = True,
        crop_min: Area = 0.08,
        blur_sigma: tuple[Sigma, Sigma] = (0.1, 2.0),
    ) -> None:
        super().__init__(backbone)
        self.momentum, self.crop_min, self.blur_sigma = momentum, crop_min, blur_sigma
        if freeze_patch_embed:
            backbone.freeze_patch_embed()
        self.projector = mlp([backbone.embed_dim, hidden_dim, out_dim])
        self.predictor = mlp([out_dim, hidden_dim, out_dim])
        self.target = EMATeacher(backbone, self.projector)

    @property
    def views(self) -> list[View]:
        """The asymmetric pair (appendix B)."""
        return byol_pair(random_resized_crop(self.backbone.image_size, self.crop_min, blur_sigma=self.blur_sigma))

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Both views predict the target network's other view (equations 2 and 3); it stays in train mode."""
        predictions, targets = [], []
        for view in views:
            predictions.append(self.predictor(self.projector(self.backbone.class_token(view))))
            with torch.no_grad():
                targets.append(self.target.head(self.target.backbone.class_token(view)))
        loss = byol_loss(predictions[0], targets[1]) + byol_loss(predictions[1], targets[0])
        spread = F.normalize(targets[0].float(), dim=1).std(dim=0, correction=0).mean()  # towards 0: collapse
        return {"loss": loss, "projection_std": spread}

    def after_step(self) -> None:
        """The target network follows (equation 1); its running statistics of batch norm are its own."""
        self.target.follow(self.backbone, self.projector, self.current_momentum)

    @property
    def current_momentum(self) -> float:
        """Cosine from ``momentum`` to 1 over the training."""
        return cosine(self.progress, self.momentum, 1.0)


def byol_loss(p: Tensor, z: Tensor) -> Tensor:
    """Mean squared distance of the normalised vectors, 2 - 2 cos: 0 to 4. No gradient for the targets.

    Args:
        p: (N, C) predictions.
        z: (N, C) projections of the target network.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> byol_loss(x, x).item(), byol_loss(x, -x).item(), byol_loss(x, x.flip(0)).item()
        (0.0, 4.0, 2.0)
    """
    return 2 - 2 * F.cosine_similarity(p.float(), z.detach().float(), dim=1).mean()

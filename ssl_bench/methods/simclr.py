"""A Simple Framework for Contrastive Learning of Visual Representations. Chen et al., ICML 2020, arXiv 2002.05709."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.method import Method
from ssl_bench.nn.heads import mlp
from ssl_bench.nn.optimizers import Training
from ssl_bench.utils.bounds import Area, NonNegative, Positive, Sigma, Width
from ssl_bench.utils.distributed import gather_with_gradient, process
from ssl_bench.views.view import PIL_DIFFERENCES, View, random_resized_crop


class SimCLR(Method):
    """Find the other view of each image among all views of the batch.

    loss = mean over the 2 N views i of CE(z_i z' / T without i itself, the other view of the image),  z: unit vectors

    Args:
        backbone: The encoder.
        hidden_dim: Width of the projector; MoCo v3's, whose projector suits ViTs (arXiv 2104.02057, section 3).
        out_dim: Dimension of z.
        temperature: T; the paper's best for long trainings (table 5).
        freeze_patch_embed: Keep the random patch projection: MoCo v3's remedy for the instability of ViTs, which helps
            SimCLR too (arXiv 2104.02057, section 4.2).
        crop_min: Smallest area of the crops (appendix A).
        color_strength: s of the colour jitter (0.8 s, 0.8 s, 0.8 s, 0.2 s) (appendix A).
        blur_sigma: Range of the blur, pixels of the view. The paper's (0.1, 2.0) is for 224 pixels.
    """

    paper = "Chen et al. 2020, arXiv 2002.05709"
    category = "contrastive"
    defaults = Training(  # MoCo v3's for its ViT-S and ViT-B with SimCLR; the paper has ResNets
        epochs=300, batch_size=4096, base_lr=1.5e-4, warmup_epochs=40, weight_decay=0.1
    )
    backbone_options = {"pos_embed": "sincos_yx", "init": "moco_v3"}
    deviations = (
        *PIL_DIFFERENCES,
        "the backbone is a ViT with MoCo v3's initial weights, fixed positions and frozen patch projection; the "
        "paper's is a ResNet",
        "the projector is MoCo v3's, three layers of width 4096 with batch norm and 256 outputs; the paper's has two "
        "layers and 128 outputs",
        "AdamW at MoCo v3's rates instead of LARS; as in the paper, biases and norms have no weight decay",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden_dim: Width = 4096,
        out_dim: Width = 256,
        temperature: Positive = 0.1,
        freeze_patch_embed: bool = True,
        crop_min: Area = 0.08,
        color_strength: NonNegative = 1.0,
        blur_sigma: tuple[Sigma, Sigma] = (0.1, 2.0),
    ) -> None:
        super().__init__(backbone)
        self.temperature, self.crop_min, self.color_strength = temperature, crop_min, color_strength
        self.blur_sigma = blur_sigma
        if freeze_patch_embed:
            backbone.freeze_patch_embed()
        self.projector = mlp([backbone.embed_dim, hidden_dim, hidden_dim, out_dim], bias=False, last_norm=True)

    @property
    def views(self) -> list[View]:
        """Two crops, augmented alike (appendix A)."""
        brightness, hue = 0.8 * self.color_strength, 0.2 * self.color_strength
        crop = random_resized_crop(
            self.backbone.image_size,
            self.crop_min,
            jitter=(brightness, brightness, brightness, hue),
            jitter_p=0.8,
            grayscale=0.2,
            blur=0.5,
            blur_sigma=self.blur_sigma,
            count=2,
        )
        return [crop]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """NT-Xent over the joint batch (equation 1, algorithm 1)."""
        z = self.projector(self.backbone.class_token(torch.cat(views))).unflatten(0, (2, -1))
        every = torch.stack([gather_with_gradient(of_view) for of_view in z])
        return {"loss": nt_xent(z, every, self.temperature, process()[0])}


def nt_xent(z: Tensor, every: Tensor, temperature: float, rank: int = 0) -> Tensor:
    """Mean cross-entropy of each view against all other views, in float32.

    Args:
        z: (2, N, C), both views of the images of this process.
        every: (2, N * W, C), those of all W processes in rank order; ``z`` itself in a single process.
        temperature: T.
        rank: This process; its first image is number N * rank.

    Example:
        >>> z = torch.eye(4).expand(2, 4, 4)
        >>> round(nt_xent(z, z, 0.5).item(), 6)  # ln(1 + 6 / e^2)
        0.594438
    """
    own = torch.arange(z.shape[1], device=z.device) + z.shape[1] * rank
    own = torch.cat([own, own + every.shape[1]])
    with torch.autocast(z.device.type, enabled=False):  # bf16 would round the logits
        anchors, candidates = (F.normalize(x.float(), dim=2).flatten(0, 1) for x in (z, every))
        logits = (anchors @ candidates.T / temperature).scatter(1, own[:, None], float("-inf"))
        return F.cross_entropy(logits, own.roll(z.shape[1]))

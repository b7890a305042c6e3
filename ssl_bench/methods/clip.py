"""Learning Transferable Visual Models From Natural Language Supervision. Radford et al. 2021, arXiv 2103.00020."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.method import Method
from ssl_bench.nn.optimizers import Training
from ssl_bench.teachers.clip_tower import CLIPTower
from ssl_bench.teachers.text_tower import TextTower, tokenize
from ssl_bench.utils.bounds import Area, Depth, Positive, Share, Width, check_multiple
from ssl_bench.utils.distributed import gather, gather_with_gradient
from ssl_bench.utils.errors import UserError
from ssl_bench.views.evaluation import eval_images, resize_crop
from ssl_bench.views.view import View, random_resized_crop

if TYPE_CHECKING:
    from ssl_bench.data.datasets import ImageSet

TEMPLATES = ("a photo of a {}.", "a picture of the {}.", "an image of one {}.", "there is a {}.", "{}")


class CLIP(Method):
    """Find the caption of each image among those of the batch, and the image of each caption.

    loss = [CE(s I T', positives) + CE(s T I', positives)] / 2,  I, T: L2-normalised features,  s: learned scale

    Args:
        backbone: The image tower; its cls token is projected.
        class_names: Names of the classes in the order of the labels; set from the data. The captions name them.
        templates: Captions, one drawn for each image; {} stands for the class name (section 3.1.4).
        out_dim: Dimension of the joint space (table 20, ViT-B).
        text_dim: Width of the text tower (section 2.4).
        text_depth: Its blocks.
        text_heads: Its attention heads.
        temperature: 1 / s at the start (section 2.5).
        crop_min: Smallest area of the crop.
        flip: Probability of a flip.
    """

    paper = "Radford et al. 2021, arXiv 2103.00020"
    category = "teacher"
    uses_labels = True
    defaults = Training(  # tables 18 and 20, ViT-B: 5e-4 at batch 32,768; 2,000 of 390,625 steps are warm-up
        epochs=32,
        batch_size=32768,
        base_lr=5e-4 / 128,
        warmup_epochs=0.164,
        weight_decay=0.2,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    backbone_options = {"pos_embed": "learned", "init": "timm"}
    captions: Tensor  # (classes, templates, S) int64
    deviations = (
        "captions are templates around the class name, not free text",
        "all captions that name an image's class are its positives, with equal weight (UniCL, arXiv 2204.03610); "
        "the paper has one caption an image",
        "the text tower reads bytes, not byte pairs; GELU is exact",
        "the image tower is the shared backbone: no layer norm before its first block, timm's initial weights",
        "random resized crops of at least 0.9 of the area instead of square crops of the resized image",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        class_names: tuple[str, ...],
        templates: tuple[str, ...] = TEMPLATES,
        out_dim: Width = 512,
        text_dim: Width = 512,
        text_depth: Depth = 12,
        text_heads: Depth = 8,
        temperature: Positive = 0.07,
        crop_min: Area = 0.9,
        flip: Share = 0.0,
    ) -> None:
        super().__init__(backbone)
        check_multiple("text_dim", text_dim, of=text_heads, named="text_heads")
        if not templates or not all("{}" in template for template in templates):
            raise UserError(f"templates {list(templates)}: each must have a {{}} for the class name")
        self.crop_min, self.flip = crop_min, flip
        self.projection = nn.Linear(backbone.embed_dim, out_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=backbone.embed_dim**-0.5)
        captions = [template.replace("{}", name) for name in class_names for template in templates]
        tokens = tokenize(captions).view(len(class_names), len(templates), -1)
        self.register_buffer("captions", tokens, persistent=False)
        self.text_tower = TextTower(text_dim, text_depth, text_heads, tokens.shape[2], out_dim)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def views(self) -> list[View]:
        """One crop."""
        return [random_resized_crop(self.backbone.image_size, self.crop_min, flip=self.flip)]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Symmetric InfoNCE over the joint batch (figure 3)."""
        (images,) = views
        assert self.labels is not None
        template = (self.uniform(len(images)) * self.captions.shape[1]).long()
        caption, place = (self.labels * self.captions.shape[1] + template).unique(return_inverse=True)
        texts = self.text_tower(self.captions.flatten(0, 1)[caption])[place]  # equal captions are encoded once
        features, texts = (
            gather_with_gradient(F.normalize(x.float(), dim=1))
            for x in (self.projection(self.backbone.class_token(images)), texts)
        )
        classes = gather(self.labels)
        with torch.autocast(features.device.type, enabled=False):  # bf16 would round logits of 100 to halves
            logits = self.log_scale.exp() * features @ texts.T
        top1 = 100 * (classes[logits.argmax(dim=1)] == classes).float().mean()
        return {"loss": contrastive_loss(logits, classes), "top1": top1, "scale": self.log_scale.detach().exp()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the logits' scale at 100 at most (section 2.5)."""
        self.log_scale.clamp_(max=math.log(100))

    @property
    def encoder(self) -> CLIPTower:
        """The image tower."""
        return CLIPTower(self.backbone, self.projection)

    @torch.no_grad()
    def finish(self, images: ImageSet) -> dict[str, Any]:
        """Zero-shot accuracy, percent, on 2,000 training images: by the mean feature of a class's captions."""
        self.eval()
        texts = F.normalize(self.text_tower(self.captions.flatten(0, 1)), dim=1)
        texts = texts.unflatten(0, self.captions.shape[:2]).mean(dim=1)
        chosen = torch.linspace(0, len(images) - 1, min(len(images), 2000)).long()
        size, correct = self.backbone.image_size, []
        for rows in chosen.split(250):
            batch = torch.stack([resize_crop(images.images[int(i)], size) for i in rows]).to(self.device)
            features = self.projection(self.backbone.class_token(eval_images(batch, size, *self.statistics)))
            correct.append((features @ texts.T).argmax(dim=1).cpu() == images.labels[rows])
        return {"zero_shot_top1_train": round(100 * torch.cat(correct).float().mean().item(), 2)}


def contrastive_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean cross-entropy of images against captions and of captions against images.

    Args:
        logits: (N, N) float, images by captions; image and caption i belong together.
        classes: (N,) int64; all captions of an image's class are its positives, with equal weight.

    Example:
        >>> round(contrastive_loss(2 * torch.eye(3), torch.arange(3)).item(), 6)
        0.239545
    """
    same = (classes[:, None] == classes).float()
    positives = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, positives) + F.cross_entropy(logits.T, positives)) / 2

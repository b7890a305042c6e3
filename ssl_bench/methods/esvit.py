"""Efficient Self-supervised Vision Transformers for Representation Learning. Li et al., ICLR 2022, arXiv 2106.09785."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.dino import DINO
from ssl_bench.methods.method import Method
from ssl_bench.nn.centering import Center, dino_loss, temperature_at
from ssl_bench.nn.ema import EMATeacher
from ssl_bench.nn.heads import DINOHead
from ssl_bench.nn.patches import patchify, unpatchify
from ssl_bench.utils.bounds import Area, Epochs, Few, Pixels, Positive, Share, Sigma, Width
from ssl_bench.views.evaluation import normalize
from ssl_bench.views.multicrop import multicrop
from ssl_bench.views.view import View

PART = 2**26  # logits of regions that are there at a time: 256 MiB


class EsViT(Method):
    """DINO on whole views; and each region of a view predicts what the teacher says of the most similar of another.

    loss = mean over pairs of views u != v, u global, of (CE(P_u, P_v) + mean over i of CE(P_u[match(i)], P_v[i])) / 2
    match(i) = argmax over j of cos(f_v[i], f_u[j]) of the backbones' features, without gradient.

    Args:
        backbone: The student. A region is one of its tokens.
        out_dim: Outputs K of both heads.
        hidden_dim: Width of the heads' MLPs.
        bottleneck_dim: Channels in front of the last layers.
        batch_norm: Batch norm in the heads (``main_esvit.py``, --use_bn_in_head; off).
        norm_last_layer: Freeze the magnitudes of the last layers at 1 (README.md; off).
        student_temperature: Of both terms.
        teacher_temperature: Of both terms, after the warm-up.
        warmup_teacher_temperature: Of both terms in the first epoch.
        warmup_teacher_epochs: Epochs from there to ``teacher_temperature``.
        center_momentum: Momentum of both centres.
        momentum: Momentum of the teacher at the start; a cosine takes it to 1.
        freeze_last_layer: Epochs in which the last layers stay as they are.
        n_local: Local crops; 0 for none.
        local_size: Height of the local crops, pixels; their shape is the image's. Left out: 96/224 of it, in patches.
        global_scale: Range of the area of the two global crops.
        local_scale: Range of the area of the local crops.
        blur_sigma: Range of the blur, pixels of the view. The paper's (0.1, 2.0) is for 224 pixels.
    """

    paper = "Li et al. 2022, arXiv 2106.09785"
    category = "self-distillation"
    defaults = replace(DINO.defaults, epochs=300)  # README.md: batch 512, and else DINO's
    needs = ("multi_crop",)
    backbone_options = DINO.backbone_options
    deviations = (
        *DINO.deviations,
        "on a ViT positions for local crops are interpolated by DINO's scale; the authors' leaves its 0.1 out",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        out_dim: Width = 65536,
        hidden_dim: Width = 2048,
        bottleneck_dim: Width = 256,
        batch_norm: bool = False,
        norm_last_layer: bool = False,
        student_temperature: Positive = 0.1,
        teacher_temperature: Positive = 0.07,
        warmup_teacher_temperature: Positive = 0.04,
        warmup_teacher_epochs: Epochs = 30,
        center_momentum: Share = 0.9,
        momentum: Share = 0.996,
        freeze_last_layer: Epochs = 1,
        n_local: Few = 8,
        local_size: Pixels | None = None,
        global_scale: tuple[Area, Area] = (0.4, 1.0),
        local_scale: tuple[Area, Area] = (0.05, 0.4),
        blur_sigma: tuple[Sigma, Sigma] = (0.1, 2.0),
    ) -> None:
        super().__init__(backbone)
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.warmup_teacher_temperature, self.warmup_teacher_epochs = warmup_teacher_temperature, warmup_teacher_epochs
        self.momentum, self.freeze_last_layer = momentum, freeze_last_layer
        self.crops = multicrop(backbone, n_local, local_size, global_scale, local_scale, blur_sigma)
        widths = (backbone.embed_dim, hidden_dim, bottleneck_dim, out_dim)
        self.head: Any = nn.ModuleList([DINOHead(*widths, norm_last_layer, batch_norm) for _ in ("view", "region")])
        self.teacher = EMATeacher(backbone, self.head)
        self.center, self.center_grid = Center(out_dim, center_momentum), Center(out_dim, center_momentum)

    @property
    def views(self) -> list[View]:
        """Two global crops, then the local ones: DINO's."""
        return self.crops

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Both terms (equations 2 and 3)."""
        batch, images = len(views[0]), torch.cat(views[:2])
        found = [self.backbone(images), *([self.backbone(torch.cat(views[2:]))] if views[2:] else [])]
        patches = [part for tokens in found for part in tokens.patches.split(batch)]  # (B, S, D) of each view
        student = self.head[0](torch.cat([tokens.cls for tokens in found])).unflatten(0, (-1, batch))
        regions = self.head[1].project(torch.cat([part.flatten(0, 1) for part in patches]))
        with torch.no_grad():
            of_view, of_regions = self.teacher.head
            tokens = self.teacher.backbone(images)
            teacher = of_view(tokens.cls).unflatten(0, (2, batch))
            known = of_regions.project(tokens.patches).unflatten(0, (2, batch))
            with torch.autocast(images.device.type, enabled=False):  # the last layer is linear: the mean of all logits
                mean_region = of_regions.last_layer(known.mean(dim=(0, 1, 2))[None])
        targets = self.center.sharpen(teacher, self.current_temperature)
        view_loss = dino_loss(student, targets, self.student_temperature)
        region_loss, parts = torch.zeros_like(view_loss), len(regions) * self.center.center.numel() > PART
        rows = regions.split([part.shape[:2].numel() for part in patches])
        for v, (part, own) in enumerate(zip(patches, rows, strict=True)):
            others = [u for u in range(2) if u != v]
            matches = torch.stack([most_similar(part, tokens.patches[u * batch :][:batch]) for u in others])
            said = known[others].gather(2, matches[..., None].expand(-1, -1, -1, known.shape[-1])).flatten(1, 2)
            region_loss = region_loss + self.matched(own, said, parts) / len(own)
        region_loss = region_loss / (2 * len(views) - 2)
        self.center.update(teacher)
        self.center_grid.update(mean_region)
        entropy = torch.special.entr(targets).sum(dim=-1).mean()  # ln K or 0, and a KL of 0: collapse
        monitored = {"teacher_entropy": entropy, "kl": view_loss.detach() - entropy}
        return {"loss": (view_loss + region_loss) / 2, "view_loss": view_loss, "region_loss": region_loss, **monitored}

    def matched(self, student: Tensor, teacher: Tensor, parts: bool) -> Tensor:
        """The sum over regions of the cross-entropies between what the teacher and the student say.

        Args:
            student: (R, C) float32, in front of the last layer.
            teacher: (U, R, C) float32, of the regions that match them in U views.
            parts: Compute so many rows at a time, and again for the gradient, that their logits are no more than PART.
        """
        last, last_of_teacher = self.head[1].last_layer, self.teacher.head[1].last_layer
        center, temperature = copy.deepcopy(self.center_grid), self.current_temperature  # as they are now

        def cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
            with torch.no_grad():
                targets = center.sharpen(last_of_teacher(teacher), temperature).sum(dim=0)
            return -(targets * (last(student).float() / self.student_temperature).log_softmax(dim=-1)).sum()

        if not parts:
            return cross_entropy(student, teacher)
        n = max(1, PART // center.center.numel())
        pairs = zip(student.split(n), teacher.split(n, dim=1), strict=True)
        pieces = [checkpoint(cross_entropy, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs]
        return torch.stack(pieces).sum()

    def before_step(self) -> None:
        """Keep both last layers in the first epochs, as DINO does."""
        if self.epoch < self.freeze_last_layer:
            for head in self.head:
                head.freeze_last()

    @property
    def current_temperature(self) -> float:
        """The teacher's temperature in this epoch, of both terms."""
        first, last = self.warmup_teacher_temperature, self.teacher_temperature
        return temperature_at(self.epoch, first, last, self.warmup_teacher_epochs)

    # DINO's: the teacher follows, and it is what is evaluated.
    after_step, current_momentum, encoder = DINO.after_step, DINO.current_momentum, DINO.encoder

    def show(self, images: Tensor) -> dict[str, Tensor]:
        """The middle of each image, mirrored, and the image put together from the regions of that which match best."""
        (height, width), grid = images.shape[-2:], self.backbone.grid
        middle = images[..., height // 6 : height - height // 6, width // 6 : width - width // 6].flip(-1)
        other = F.interpolate(middle, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
        view, side = self.drawn_views[0], height // grid[0]
        matches = most_similar(*(self.teacher.backbone(normalize(x, view)).patches for x in (images, other)))
        pixels = patchify(other, side)
        chosen = pixels.gather(1, matches[..., None].expand(-1, -1, pixels.shape[-1]))
        return {"another view": other, "its matches": unpatchify(chosen, side, grid)}


@torch.no_grad()
def most_similar(regions: Tensor, others: Tensor) -> Tensor:
    """For each region the number of the other that points most nearly in its direction; the first of equals.

    Args:
        regions: (..., S, D) features, any float dtype; compared in float32.
        others: (..., T, D).

    Returns:
        (..., S) int64.

    Example:
        >>> most_similar(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, 0.2], [-0.5, 1.0]])).tolist()
        [0, 0]
    """
    with torch.autocast(regions.device.type, enabled=False):
        a, b = (F.normalize(x.float(), dim=-1) for x in (regions, others))
        return (a @ b.transpose(-1, -2)).argmax(dim=-1)

"""iBOT: Image BERT Pre-Training with Online Tokenizer. Zhou et al., ICLR 2022, arXiv 2111.07832."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.dino import DINO
from ssl_bench.methods.method import Method
from ssl_bench.nn.centering import Center, dino_loss, temperature_at
from ssl_bench.nn.ema import EMATeacher
from ssl_bench.nn.heads import IBOTHead
from ssl_bench.nn.masking import block_masking
from ssl_bench.utils.bounds import Area, Epochs, Few, NonNegative, Pixels, Positive, Share, Sigma, Width
from ssl_bench.utils.errors import UserError
from ssl_bench.views.multicrop import multicrop
from ssl_bench.views.view import View


class IBOT(Method):
    """DINO on the cls tokens, and from the masked patches of a crop the teacher's word on each of them.

    loss = lambda1 DINO(cls) + lambda2 mean over images of the mean over masked j of CE(P_t[j], P_s[j]), same crop

    Args:
        backbone: The student; it owns the mask token, which starts at 0.
        out_dim: Outputs K of both last layers (section 4).
        hidden_dim: Width of the head's MLP.
        bottleneck_dim: Channels in front of the last layers.
        batch_norm: Batch norm in the head (``main_ibot.py``, --norm_in_head; off), over all tokens of equal crops.
        norm_last_layer: Freeze the magnitudes of the last layers at 1 (off in the released ViT-S).
        shared_head: The student has one last layer for cls tokens and patches (appendix E; all released models).
        shared_head_teacher: So has the teacher.
        lambda1: Weight of the cls term.
        lambda2: Weight of the patch term.
        student_temperature: Of both terms.
        teacher_temperature: Of the cls term, after its warm-up.
        teacher_patch_temperature: Of the patch term, after its warm-up.
        warmup_teacher_temperature: Of both terms in the first epoch.
        warmup_teacher_epochs: Epochs from there to the final temperatures.
        center_momentum: Momentum of both centres.
        momentum: Momentum of the teacher at the start; a cosine takes it to 1.
        freeze_last_layer: Epochs in which the last layers stay as they are.
        pred_ratio: Masked part of the patches: for each crop one of these means is drawn,
        pred_ratio_var: and a ratio at most this far from it. By default half of the crops have no mask.
        pred_shape: Rectangles (``block``) or single patches (``rand``).
        pred_start_epoch: Masks, and the warm-up of the patch term's temperature, start here (0 for ViTs).
        n_local: Local crops, never masked; 0 for none.
        local_size: Height of the local crops, pixels; their shape is the image's. Left out: 96/224 of it, in patches.
        global_scale: Range of the area of the two global crops.
        local_scale: Range of the area of the local crops.
        blur_sigma: Range of the blur, pixels of the view. The paper's (0.1, 2.0) is for 224 pixels.
    """

    paper = "Zhou et al. 2022, arXiv 2111.07832"
    category = "self-distillation"
    defaults = replace(DINO.defaults, epochs=800, batch_size=1024)  # the released ViT-S
    needs = ("mask", "multi_crop")
    backbone_options = DINO.backbone_options | {"mask_token": True}
    deviations = (
        *DINO.deviations,
        "on several processes both places of a head's batch norm see the joint batch; in the authors' code only the "
        "first does",
        "the agreement of the teacher's outputs with the labels is not logged, because training sees no labels",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        out_dim: Width = 8192,
        hidden_dim: Width = 2048,
        bottleneck_dim: Width = 256,
        batch_norm: bool = False,
        norm_last_layer: bool = False,
        shared_head: bool = True,
        shared_head_teacher: bool = True,
        lambda1: NonNegative = 1.0,
        lambda2: NonNegative = 1.0,
        student_temperature: Positive = 0.1,
        teacher_temperature: Positive = 0.07,
        teacher_patch_temperature: Positive = 0.07,
        warmup_teacher_temperature: Positive = 0.04,
        warmup_teacher_epochs: Epochs = 30,
        center_momentum: Share = 0.9,
        momentum: Share = 0.996,
        freeze_last_layer: Epochs = 1,
        pred_ratio: tuple[Share, ...] = (0.0, 0.3),
        pred_ratio_var: tuple[Share, ...] = (0.0, 0.2),
        pred_shape: Literal["block", "rand"] = "block",
        pred_start_epoch: Epochs = 0,
        n_local: Few = 10,
        local_size: Pixels | None = None,
        global_scale: tuple[Area, Area] = (0.25, 1.0),
        local_scale: tuple[Area, Area] = (0.05, 0.25),
        blur_sigma: tuple[Sigma, Sigma] = (0.1, 2.0),
    ) -> None:
        super().__init__(backbone)
        if shared_head and not shared_head_teacher:
            raise UserError("shared_head true needs shared_head_teacher true, or the teacher's own layer never moves")
        known = len(pred_ratio) == len(pred_ratio_var) > 0
        if not known or not all(0 <= v <= r <= 1 - v for r, v in zip(pred_ratio, pred_ratio_var, strict=True)):
            given = f"pred_ratio {list(pred_ratio)}, pred_ratio_var {list(pred_ratio_var)}"
            raise UserError(f"{given}: they need the same length, and every ratio +- var must lie in [0, 1]")
        assert backbone.mask_token is not None
        self.lambda1, self.lambda2, self.student_temperature = lambda1, lambda2, student_temperature
        self.warmup_teacher_temperature, self.warmup_teacher_epochs = warmup_teacher_temperature, warmup_teacher_epochs
        self.teacher_temperature, self.teacher_patch_temperature = teacher_temperature, teacher_patch_temperature
        self.momentum, self.freeze_last_layer, self.pred_shape = momentum, freeze_last_layer, pred_shape
        self.pred_ratio, self.pred_ratio_var, self.pred_start_epoch = pred_ratio, pred_ratio_var, pred_start_epoch
        self.crops = multicrop(backbone, n_local, local_size, global_scale, local_scale, blur_sigma)
        nn.init.zeros_(backbone.mask_token)
        widths = (backbone.embed_dim, hidden_dim, bottleneck_dim, out_dim)
        self.head = IBOTHead(*widths, norm_last_layer, shared_head, batch_norm)
        self.teacher = EMATeacher(backbone, self.head)
        if shared_head_teacher:  # it starts as the student's second layer and follows the first (``main_ibot.py``)
            self.teacher.head.last_layer.load_state_dict(self.head.last_layer2.state_dict())
            self.teacher.head.last_layer2 = self.teacher.head.last_layer
        self.center, self.center2 = Center(out_dim, center_momentum), Center(out_dim, center_momentum)

    @property
    def views(self) -> list[View]:
        """Two global crops, then the local ones: DINO's."""
        return self.crops

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Both terms (algorithm 1, with multi-crop): the student's global crops are masked, the teacher's are not."""
        batch, images = len(views[0]), torch.cat(views[:2])
        mask = self.masks(batch)
        tokens = self.backbone(images, mask=mask)
        cls, patches = self.head.of_image_and_masked(tokens.cls, tokens.patches, mask)
        local = [self.head.of_images(self.backbone, torch.cat(views[2:]))] if views[2:] else []
        cls = torch.cat([cls, *local]).unflatten(0, (-1, batch))
        with torch.no_grad():
            head = self.teacher.head
            projected = head.project_all(*self.teacher.backbone(images))
            teacher, projected = head.last_layer(projected[:, 0]).unflatten(0, (2, batch)), projected[:, 1:]
            teacher_patches = head.last_layer2(projected[mask])
            with torch.autocast(images.device.type, enabled=False):  # the last layer is linear: the mean of all logits
                mean_patch = head.last_layer2(projected.mean(dim=(0, 1), keepdim=True))
        first, warmup = self.warmup_teacher_temperature, self.warmup_teacher_epochs
        temperature = temperature_at(self.epoch, first, self.teacher_temperature, warmup)
        targets = self.center.sharpen(teacher, temperature)
        temperature = temperature_at(self.epoch - self.pred_start_epoch, first, self.teacher_patch_temperature, warmup)
        patch_targets = self.center2.sharpen(teacher_patches, temperature)
        cls_loss = dino_loss(cls, targets, self.student_temperature)
        patch = patch_loss(patches, patch_targets, mask, self.student_temperature)
        self.center.update(teacher)
        self.center2.update(mean_patch)
        loss = self.lambda1 * cls_loss + self.lambda2 * patch
        entropy = torch.special.entr(targets).sum(dim=-1).mean()  # ln K or 0, and a KL of 0: collapse
        agreement = (targets[0].argmax(dim=-1) == cls[1].argmax(dim=-1)).float().mean()
        monitored = {"teacher_entropy": entropy, "kl": cls_loss.detach() - entropy, "agreement": agreement}
        return {"loss": loss, "cls_loss": cls_loss, "patch_loss": patch, **monitored}

    def masks(self, batch: int) -> Tensor:
        """(2 B, L) bool: an independent mask for every global crop, crop by crop (section 3.1; ``loader.py``)."""

        def uniform(n: int) -> Tensor:
            return self.uniform(batch, 2, n).transpose(0, 1).flatten(0, 1)

        grid = self.backbone.mask_grid
        which, place = uniform(2).unbind(1)
        table = torch.tensor([self.pred_ratio, self.pred_ratio_var], dtype=torch.float64, device=which.device)
        ratio, var = table[:, (which * len(self.pred_ratio)).long()]
        cells = (ratio + (2 * place - 1) * var) * grid[0] * grid[1] * (self.epoch >= self.pred_start_epoch)
        if self.pred_shape == "rand":
            return uniform(grid[0] * grid[1]).argsort(dim=1).argsort(dim=1) < cells.floor()[:, None]
        return block_masking(cells, grid, (min(grid) // 3) ** 2, uniform).flatten(1)

    # DINO's: the last layers stay as they are in the first epochs, the teacher follows, and it is what is evaluated.
    before_step, after_step = DINO.before_step, DINO.after_step
    current_momentum, encoder = DINO.current_momentum, DINO.encoder


def patch_loss(student: Tensor, targets: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Mean over images of the mean cross-entropy over their masked patches; an image without mask counts as 0.

    Args:
        student: (M, K) logits of the masked patches, image by image.
        targets: (M, K) float32 distributions of the teacher there.
        mask: (N, L) bool with M True.
        temperature: Of the student.

    Example:
        >>> mask = torch.tensor([[True, False, True], [False, False, False]])
        >>> round(patch_loss(torch.zeros(2, 16), torch.full((2, 16), 1 / 16), mask, 0.1).item(), 6)  # (ln 16) / 2
        1.386294
    """
    each = F.cross_entropy(student.float() / temperature, targets, reduction="none")
    share = mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (each * share[mask]).sum() / len(mask)

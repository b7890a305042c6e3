"""Emerging Properties in Self-Supervised Vision Transformers. Caron et al., ICCV 2021, arXiv 2104.14294."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ssl_bench.backbones import check_needs
from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.method import Method
from ssl_bench.nn.centering import Center, temperature_at
from ssl_bench.nn.ema import EMATeacher
from ssl_bench.nn.heads import DINOHead
from ssl_bench.nn.optimizers import Training
from ssl_bench.nn.schedules import cosine
from ssl_bench.utils.errors import UserError
from ssl_bench.views.view import PIL_DIFFERENCES, View, random_resized_crop


class DINO(Method):
    """From any crop of an image, predict what the teacher, an average of past students, says about a large crop.

    loss = mean over pairs of views u != v, u global, of CE(softmax((t_u - c) / T_t), softmax(s_v / T_s))

    Args:
        backbone: The student.
        out_dim: Outputs K of the head (appendix C).
        hidden_dim: Width of the head's MLP.
        bottleneck_dim: Channels in front of the last layer.
        batch_norm: Batch norm in the head (``main_dino.py``, --use_bn_in_head; off for ViTs).
        norm_last_layer: Freeze the magnitudes of the last layer at 1 (``main_dino.py``; off in the released ViT-S).
        student_temperature: T_s.
        teacher_temperature: T_t after its warm-up.
        warmup_teacher_temperature: T_t in the first epoch.
        warmup_teacher_epochs: Epochs from the one to the other; 0 = ``teacher_temperature`` all the time.
        center_momentum: Momentum of the centre c (section 3.1).
        momentum: Momentum of the teacher at the start; a cosine takes it to 1 (section 3.1).
        freeze_last_layer: Epochs in which the last layer stays as it is.
        n_local: Local crops; 0 for none (then with ``global_scale`` (0.14, 1)).
        local_size: Height of the local crops, pixels; their shape is the image's. Left out: 96/224 of it, in patches.
        global_scale: Range of the area of the two global crops.
        local_scale: Range of the area of the local crops.
        blur_sigma: Range of the blur, pixels of the view. The paper's (0.1, 2.0) is for 224 pixels.
    """

    paper = "Caron et al. 2021, arXiv 2104.14294"
    category = "self-distillation"
    defaults = Training(  # main_dino.py: the 100-epoch ViT-S
        epochs=100,
        batch_size=512,
        base_lr=5e-4,
        min_lr=1e-6,
        warmup_epochs=10,
        schedule="step_inclusive",
        weight_decay=0.04,
        final_weight_decay=0.4,
        clip_grad=3.0,
        clip_per_tensor=True,
    )
    needs = ("multi_crop",)
    backbone_options = {"pos_embed": "learned", "init": "dino", "resample": "dino", "drop_path": 0.1}
    deviations = (
        *PIL_DIFFERENCES,
        "mixed precision, where a recipe has it, is bf16; the authors' is fp16 with a loss scaler",
        "at other image sizes than 224 the local crops are 96/224 of the image in whole patches",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        warmup_teacher_temperature: float = 0.04,
        warmup_teacher_epochs: int = 0,
        center_momentum: float = 0.9,
        momentum: float = 0.996,
        freeze_last_layer: int = 1,
        n_local: int = 8,
        local_size: int | None = None,
        global_scale: tuple[float, float] = (0.4, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.4),
        blur_sigma: tuple[float, float] = (0.1, 2.0),
    ) -> None:
        super().__init__(backbone)
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.warmup_teacher_temperature, self.warmup_teacher_epochs = warmup_teacher_temperature, warmup_teacher_epochs
        self.momentum, self.freeze_last_layer = momentum, freeze_last_layer
        self.crops = multicrop(backbone, n_local, local_size, global_scale, local_scale, blur_sigma)
        self.head = DINOHead(backbone.embed_dim, hidden_dim, bottleneck_dim, out_dim, norm_last_layer, batch_norm)
        self.teacher = EMATeacher(backbone, self.head)
        self.center = Center(out_dim, center_momentum)

    @property
    def views(self) -> list[View]:
        """Two global crops, then the local ones."""
        return self.crops

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Cross-entropy between the teacher's global and the student's other views (algorithm 1, with multi-crop)."""
        batch, images = len(views[0]), torch.cat(views[:2])
        local = [self.backbone(torch.cat(views[2:])).cls] if views[2:] else []
        student = self.head(torch.cat([self.backbone(images).cls, *local])).unflatten(0, (-1, batch))
        with torch.no_grad():
            teacher = self.teacher.head(self.teacher.backbone(images).cls).unflatten(0, (2, batch))
        targets = self.center.sharpen(teacher, self.current_temperature)
        loss = dino_loss(student, targets, self.student_temperature)
        self.center.update(teacher)
        entropy = torch.special.entr(targets).sum(dim=-1).mean()  # ln K or 0, and a KL of 0: collapse
        return {"loss": loss, "teacher_entropy": entropy, "kl": loss.detach() - entropy}

    @property
    def current_temperature(self) -> float:
        """The teacher's temperature in this epoch."""
        first, last = self.warmup_teacher_temperature, self.teacher_temperature
        return temperature_at(self.epoch, first, last, self.warmup_teacher_epochs)

    def before_step(self) -> None:
        """Keep the last layer in the first epochs (``main_dino.py``): without gradient AdamW leaves it alone."""
        if self.epoch < self.freeze_last_layer:
            self.head.freeze_last()

    def after_step(self) -> None:
        """The teacher follows the student."""
        self.teacher.follow(self.backbone, self.head, self.current_momentum)

    @property
    def current_momentum(self) -> float:
        """Cosine from ``momentum`` to 1 over the training."""
        return cosine(self.progress, self.momentum, 1.0)

    @property
    def encoder(self) -> nn.Module:
        """The teacher's backbone."""
        return self.teacher.backbone


def multicrop(
    backbone: Backbone,
    n_local: int,
    local_size: int | None,
    global_scale: tuple[float, float],
    local_scale: tuple[float, float],
    blur_sigma: tuple[float, float],
) -> list[View]:
    """Two global crops, augmented as in BYOL, and ``n_local`` small ones (section 3.1; ``main_dino.py``).

    Raises:
        UserError: ``local_size`` isn't a multiple of the patch size, or the backbone takes one image size alone.

    Example:
        >>> from ssl_bench.backbones import build_backbone
        >>> from ssl_bench.views.view import describe
        >>> describe(multicrop(build_backbone("vit_micro_patch16_224"), 10, None, (0.4, 1), (0.05, 0.4), (0.1, 2)))
        '2x224 + 10x96'
    """
    check_needs("multi-crop", type(backbone), backbone.spec, ["multi_crop"] if n_local else [])
    (height, width), patch = backbone.image_size, backbone.cell
    if local_size is not None and (local_size < patch or local_size % patch):
        raise UserError(f"local_size is {local_size}; it must be a multiple of the patch size {patch}")
    share = (local_size or height * 96 / 224) / height
    first = random_resized_crop(
        (height, width),
        scale=global_scale,
        jitter=(0.4, 0.4, 0.2, 0.1),
        jitter_p=0.8,
        grayscale=0.2,
        blur=1.0,
        blur_sigma=blur_sigma,
    )
    rows, columns = (max(1, round(side * share / patch)) for side in (height, width))
    size = (rows * patch, columns * patch)
    local = [replace(first, size=size, scale=local_scale, blur=0.5, count=n_local)] if n_local else []
    return [first, replace(first, blur=0.1, solarize=0.2), *local]


def dino_loss(student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy over all pairs of a teacher's view u and another view v of the student (equation 3).

    Args:
        student: (V, B, K) logits, the global views first.
        targets: (2, B, K) float32 distributions of the teacher on the global views.
        temperature: Of the student.

    Example:
        >>> round(dino_loss(torch.zeros(10, 4, 16), torch.full((2, 4, 16), 1 / 16), 0.1).item(), 6)  # ln 16
        2.772589
    """
    log_q = (student.float() / temperature).log_softmax(dim=-1)
    cross = (targets.flip(0) * log_q[:2]).sum() + (targets.sum(dim=0) * log_q[2:].sum(dim=0)).sum()
    return -cross / ((2 * len(student) - 2) * student.shape[1])

"""Emerging Properties in Self-Supervised Vision Transformers. Caron et al., ICCV 2021, arXiv 2104.14294."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.method import Method
from ssl_bench.nn.centering import Center, dino_loss, temperature_at
from ssl_bench.nn.ema import EMATeacher
from ssl_bench.nn.heads import DINOHead
from ssl_bench.nn.optimizers import Training
from ssl_bench.nn.schedules import cosine
from ssl_bench.utils.bounds import Area, Epochs, Few, Pixels, Positive, Share, Sigma, Width
from ssl_bench.views.multicrop import multicrop
from ssl_bench.views.view import PIL_DIFFERENCES, View


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
        out_dim: Width = 65536,
        hidden_dim: Width = 2048,
        bottleneck_dim: Width = 256,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
        student_temperature: Positive = 0.1,
        teacher_temperature: Positive = 0.04,
        warmup_teacher_temperature: Positive = 0.04,
        warmup_teacher_epochs: Epochs = 0,
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
        local = [self.backbone.class_token(torch.cat(views[2:]))] if views[2:] else []
        student = self.head(torch.cat([self.backbone.class_token(images), *local])).unflatten(0, (-1, batch))
        with torch.no_grad():
            teacher = self.teacher.head(self.teacher.backbone.class_token(images)).unflatten(0, (2, batch))
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

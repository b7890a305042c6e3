"""EVA-02: A Visual Representation for Neon Genesis. Fang et al. 2023, arXiv 2303.11331."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.method import Method
from ssl_bench.nn.heads import LateLinear
from ssl_bench.nn.losses import cosine_loss
from ssl_bench.nn.masking import block_masking, masked_by_blocks
from ssl_bench.nn.optimizers import Training, no_decay_on_vectors
from ssl_bench.teachers.teacher import Teacher, make_teacher
from ssl_bench.utils.bounds import Area, Count, OpenShare
from ssl_bench.views.view import View, random_resized_crop

if TYPE_CHECKING:
    from ssl_bench.data.datasets import ImageSet


class EVA02MIM(Method):
    """EVA's pre-training of another network: predict a frozen CLIP's features of the whole image at masked patches.

    loss = - mean over masked patches of cos(prediction, teacher's patch token)

    Args:
        backbone: The student.
        teacher: Whose patch tokens are the target: a CLIP of the suite (``clip:RECIPE``, trained first on the same
            images and their class names), a tower of timm (``timm:MODEL``; the paper's is EVA-CLIP's ViT-g/14) or any
            encoder of ours (``checkpoint:PATH``).
        mask_ratio: Part of the patches that is masked (the authors' scripts mask 105 of 256).
        min_block: Smallest block, patches (the authors' scripts).
        crop_min: Smallest area of the crop (the authors' ``datasets.py``).
    """

    paper = "Fang et al. 2023, arXiv 2303.11331"
    category = "feature regression"
    defaults = Training(  # the authors' README, base and large: learning rate 1.5e-3 at batch 2048
        epochs=150,
        batch_size=2048,
        base_lr=1.875e-4,
        min_lr=1e-5,
        warmup_epochs=1,
        schedule="step_inclusive",
        weight_decay=0.05,
        betas=(0.9, 0.98),
        eps=1e-6,
        clip_grad=3.0,
    )
    needs = ("mask",)
    backbone_options = {"pos_embed": "learned", "patch_gradient": 0.1, "mask_token": True}
    input_statistics = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # CLIP's
    deviations = (
        "unless the teacher is timm:eva_giant_patch14_clip_224.laion400m, it is not the paper's",
        "mixed precision, where a recipe has it, is bf16; the authors' is fp16 with DeepSpeed",
        "the bias of the patch convolution starts at 0; the authors' keeps torch's default",
        "the authors pre-train on ImageNet-22k or on 38 million images of several sets",
    )
    teachers = ("teacher",)

    def __init__(
        self,
        backbone: Backbone,
        *,
        teacher: str = "clip",
        mask_ratio: OpenShare = 0.41,
        min_block: Count = 16,
        crop_min: Area = 0.2,
    ) -> None:
        super().__init__(backbone)
        self.teacher_name, self.min_block, self.crop_min = teacher, min_block, crop_min
        self.n_masked = masked_by_blocks(mask_ratio, min_block, backbone.mask_grid)
        self.head = LateLinear(backbone.embed_dim)  # as wide as the teacher's tokens, so made with it
        self._teacher: tuple[Teacher, ...] = ()  # a tuple keeps it out of the parameters and the state dict

    def set_teacher(self, keyword: str, network: nn.Module | None, source: str = "") -> None:
        """Take the teacher, and make the head that predicts its tokens: Xavier-normal (``modeling_pretrain.py``)."""
        teacher = make_teacher(self.teacher_name, self.backbone.mask_grid, network, source)
        self._teacher = (teacher,)
        self.flags += teacher.flags
        self.head.make(teacher.dim, nn.init.xavier_normal_, self.seed)

    @property
    def teacher(self) -> Teacher:
        """The frozen teacher, on the device of the method."""
        assert self._teacher, "set_teacher comes first"
        return self._teacher[0].to(self.device)

    @property
    def views(self) -> list[View]:
        """The student's crop, and the same crop at the teacher's size; no colour augmentation."""
        crop = random_resized_crop(self.backbone.image_size, self.crop_min)
        return [crop, self.teacher.view_of(crop)]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Negative cosine between predictions and the teacher's tokens (``engine_for_pretraining.py``)."""
        images, seen = views
        mask = self.masks(len(images))
        prediction = self.head(self.backbone(images, mask=mask).patches)
        return {"loss": cosine_loss(prediction, self.teacher.patches(seen), mask)}

    def masks(self, batch: int) -> Tensor:
        """(B, L) bool, blocks of masked patches."""
        wanted = torch.full((batch,), float(self.n_masked), device=self.device)
        return block_masking(wanted, self.backbone.mask_grid, self.min_block, partial(self.uniform, batch)).flatten(1)

    def param_groups(self) -> list[dict[str, Any]]:
        """No weight decay on vectors, positions and the cls token; the mask token is decayed (``optim_factory.py``)."""
        return no_decay_on_vectors(self.named_parameters(), spared=("cls_token", "pos_embed"))

    def finish(self, images: ImageSet) -> dict[str, Any]:
        """Which teacher."""
        return {"teacher": self.teacher.about}

"""EVA: Exploring the Limits of Masked Visual Representation Learning at Scale. Fang et al. 2022, arXiv 2211.07636."""

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


class EVA(Method):
    """See an image with blocks of patches masked, and predict a frozen CLIP's features of the whole image there.

    loss = - mean over masked patches of cos(prediction, teacher's patch token)

    Args:
        backbone: The student.
        teacher: Whose patch tokens are the target: a CLIP of the suite (``clip:RECIPE``, trained first on the same
            images and their class names), a tower of timm (``timm:MODEL``; the paper's is OpenAI's ViT-L/14) or any
            encoder of ours (``checkpoint:PATH``).
        mask_ratio: Part of the patches that is masked (section 2.2 says 40 %; the authors' code masks 105 of 256).
        min_block: Smallest block, patches (BEiT's 16, for grids of 14 x 14 and more).
        crop_min: Smallest area of the crop (the authors' ``datasets.py``).
    """

    paper = "Fang et al. 2022, arXiv 2211.07636"
    category = "feature regression"
    defaults = Training(  # the authors' README and log for the ViT-g/14: learning rate 1e-3 at batch 4096
        epochs=150,
        batch_size=4096,
        base_lr=6.25e-5,
        min_lr=1e-5,
        warmup_epochs=2,
        schedule="step_inclusive",
        weight_decay=0.05,
        betas=(0.9, 0.98),
        eps=1e-6,
        clip_grad=3.0,
    )
    needs = ("mask",)
    backbone_options = {"pos_embed": "learned", "init": "beit", "drop_path": 0.1, "mask_token": True}
    input_statistics = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # CLIP's
    deviations = (
        "initial weights of std 0.02, the authors' default; their ViT-g has 0.015",
        "the keys of the attention have a bias, which softmax cancels; the authors' have none",
        "unless the teacher is timm:vit_large_patch14_clip_quickgelu_224.openai, it is not the paper's",
        "mixed precision, where a recipe has it, is bf16; the authors' is fp16 with DeepSpeed",
        "the default masks 41 % of the patches as the authors' code does (105 of 256); the paper says 40 %",
        "the authors' MAE-style variant (EVA-L) is not implemented",
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
        """Take the teacher, and make the head that predicts its tokens."""
        teacher = make_teacher(self.teacher_name, self.backbone.mask_grid, network, source)
        self._teacher = (teacher,)
        self.flags += teacher.flags
        self.head.make(teacher.dim, partial(nn.init.trunc_normal_, std=0.02, a=-0.02, b=0.02), self.seed)

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
        """Negative cosine between the student's predictions and the teacher's tokens (section 2.2)."""
        student_view, teacher_view = views
        batch = len(student_view)
        wanted = torch.full((batch,), float(self.n_masked), device=student_view.device)
        uniform = lambda n: self.uniform(batch, n)  # noqa: E731
        mask = block_masking(wanted, self.backbone.mask_grid, self.min_block, uniform).flatten(1)
        target = self.teacher.patches(teacher_view)
        prediction = self.head(self.backbone(student_view, mask=mask).patches)
        return {"loss": cosine_loss(prediction, target, mask)}

    def param_groups(self) -> list[dict[str, Any]]:
        """No weight decay on vectors, positions and the cls token; the mask token is decayed (``optim_factory.py``)."""
        return no_decay_on_vectors(self.named_parameters(), spared=("cls_token", "pos_embed"))

    def finish(self, images: ImageSet) -> dict[str, Any]:
        """Which teacher."""
        return {"teacher": self.teacher.about}
